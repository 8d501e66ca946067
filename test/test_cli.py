"""The command line: told by tasks, wrong words end in one line, the old names still work."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import SimpleITK as sitk
from conftest import HEAD_GRID, ROOT, head, tiny_ct, tiny_label, tiny_pet, write_patient

from hmvnet import __version__, cli, cohort
from hmvnet.exits import Exit, RefusedError
from hmvnet.phantom.dicom import write_dicom
from hmvnet.state import claimed

PHANTOM = ROOT / "test" / "cases" / "phantom-1" / "input"


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    return int(ended.value.code or 0)


COMMANDS = [
    (),
    ("predict",),
    ("segmentation",),
    *(("segmentation", name) for name in ("train", "eval", "tune", "compare")),
    ("survival",),
    *(("survival", name) for name in ("train", "eval", "recalibrate", "compare")),
    ("settings",),
    ("export",),
    ("phantom",),
    ("bench",),
    *(("bench", name) for name in ("survival", "parts")),
    *((name,) for name in ("train", "eval", "tune", "compare")),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_help(words, capsys):
    assert run(*words, "--help") == 0
    assert capsys.readouterr().out.startswith("Usage: hmvnet")


def test_help_loads_no_heavy_package():
    """It answers at once because it does not wait for torch and its like."""
    heavy = "torch monai SimpleITK numpy pandas sklearn scipy matplotlib pydantic lightning_fabric"
    code = f"""
import sys
from hmvnet.cli import main
try:
    main(["--help"])
except SystemExit as ended:
    assert not ended.code
assert not set(sys.modules) & set({heavy.split()!r}), set(sys.modules) & set({heavy.split()!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"hmvnet {__version__}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("predict", "--nonsense"), "No such option: --nonsense"),
        (("predict",), "Missing argument"),
        (("predictt",), "No such command"),
        (("segmentation", "train", "--fold", "x"), "--fold"),
        (("segmentation", "train", "training.stepz=1"), "did you mean training.steps?"),
        (("segmentation", "train"), "no data folder"),
        (("segmentation", "eval", "--weights", "nowhere", "data.root=x"), "nowhere"),
        (
            ("segmentation", "eval", "data.root=x", "network.name=segresnet"),
            "setting 'network.name'",
        ),
        (("survival", "eval", "data.root=x", "prognosis.members=9"), "the bundle's prognosis is"),
        (("eval", "data.root=x", "training.steps=9"), "the bundle's training is what is scored"),
        (("segmentation", "compare", "--network", "hmvnett"), "unknown network 'hmvnett'"),
        (("phantom", "x", "--count", "0"), "--count"),
        (("export", "--size", "a,b"), "--size a,b"),
        (("export", "--size", "96,96"), "--size 96,96"),
        (
            (
                "predict",
                ROOT / "test/cases/phantom-1/input",
                "-o",
                "x",
                "--set",
                "training.steps=3",
            ),
            "prediction reads",
        ),
        (("predict", "nowhere", "-o", "x"), "nowhere: no such file or folder"),
        (("predict", ".", "-o", "x", "--force", "--continue"), "exclude each other"),
        (
            ("predict", ROOT / "test/cases/phantom-1/input", "-o", "x", "--region", "chest"),
            "data.region",
        ),
    ],
)
def test_wrong_words_end_in_one_line(words, said, capfd):
    assert run(*words) == Exit.REFUSED
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0]


@pytest.mark.parametrize(
    "words",
    [
        *(("segmentation", name) for name in ("train", "eval", "tune", "compare")),
        *(("survival", name) for name in ("train", "eval", "compare")),
    ],
    ids=" ".join,
)
def test_two_commands_in_one_run_folder(words, tmp_path, capfd):
    if words[0] == "survival":
        pytest.importorskip("sksurv", reason="of the extra 'baselines'")
    with claimed(tmp_path):
        assert run(*words, "--run", tmp_path) == Exit.REFUSED
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {tmp_path}: another command is at work")


def test_a_wrong_device_is_one_line(write_case, tiny_bundle, tmp_path, capfd):
    words = ("predict", write_case(), "-o", tmp_path / "out", "--weights", tiny_bundle)
    assert run(*words, "--device", "gpu") == Exit.REFUSED
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line == "error: device 'gpu': expected auto, cpu, cuda or cuda:<number>"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("package", "words", "extra"),
    [
        ("sksurv", ("survival", "compare"), "baselines"),
        ("lightning_fabric", ("segmentation", "train"), "train"),
        ("blosc2", ("segmentation", "compare"), "train"),
        ("numba", ("segmentation", "train"), "train"),
    ],
)
def test_a_package_of_an_extra_is_named(package, words, extra):
    code = f"import sys; sys.modules[{package!r}] = None; from hmvnet.cli import main; main()"
    command = [sys.executable, "-c", code, *words, "data.root=x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == Exit.REFUSED and f"extra '{extra}'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("option", ["--workers", "--scheduler"])
def test_predict_without_dask_names_the_extra(option, tiny_bundle, tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    for name in ("a", "b"):
        write_patient(tmp_path / "data", name)
    words = ("predict", tmp_path / "data", "-o", tmp_path / "out", "--weights", tiny_bundle)
    assert run(*words, option, 2) == Exit.REFUSED
    assert "error: this needs distributed, of the extra 'cluster': pip" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_predict_takes_one_kind_of_help(tmp_path, capfd):
    words = ("predict", tmp_path, "-o", tmp_path, "--scheduler", "tcp://x:1")
    assert run(*words, "--workers", 2) == run(*words, "--mask", "x") == Exit.REFUSED
    assert capfd.readouterr().err.count("--scheduler goes neither with") == 2


def test_predict_a_challenge_folder(write_case, tiny_bundle, tmp_path, capfd):
    words = ("predict", write_case(folder="P1/input"), "-o", tmp_path / "out")
    words = (*words, "--weights", tiny_bundle, "--no-picture", "--region", "centre")
    assert run(*words) == 0
    said = capfd.readouterr().out
    assert "data.region=centre, the bundle's is head-neck" in said
    assert "RFS risk" not in said and "no risk: the survival model is of head-neck alone" in said
    report = json.loads((tmp_path / "out" / "P1" / "report.json").read_text())
    assert any("data.region=centre" in note for note in report["notes"])
    assert run(*words) == Exit.REFUSED
    assert "--force" in capfd.readouterr().err
    page = tmp_path / "out" / "P1" / "page.html"
    assert page.is_file()  # of one patient, unless it is not wanted
    assert run(*words, "--force", "--no-page") == 0 and not page.exists()
    assert run(*words, "--force") == 0 and run(*words, "--continue") == 0


def test_an_import_takes_the_place_of_a_bundle_and_of_nothing_else(tmp_path, capfd):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("precious")
    assert run("import", "nnunet", tmp_path, "-o", tmp_path / "work", "--force") == Exit.REFUSED
    assert "is there, and no bundle" in capfd.readouterr().err
    assert (tmp_path / "work" / "thesis.txt").read_text() == "precious"


def test_predict_many_names_the_broken_one(tiny_bundle, tmp_path, capfd):
    folder = tmp_path / "imagesTs"
    folder.mkdir()
    for name in ("a", "b"):
        sitk.WriteImage(tiny_ct(), str(folder / f"{name}_0000.nii.gz"))
        sitk.WriteImage(tiny_pet(), str(folder / f"{name}_0001.nii.gz"))
    (folder / "a_0001.nii.gz").write_bytes(b"")
    words = ("predict", tmp_path, "-o", tmp_path / "out", "--weights", tiny_bundle, "--no-picture")
    assert run(*words) == Exit.REFUSED
    said = capfd.readouterr()
    assert "error: a: a_0001.nii.gz: image file is empty" in said.err
    assert "2 patients: 1 predicted, 0 there already, 1 refused" in said.out
    assert f"{tmp_path}: 2 patients, 0 with a health record\ncentres: a (1), b (1)\n" in said.err
    assert (tmp_path / "out" / "b" / "mask.nii.gz").is_file()
    assert not (tmp_path / "out" / "b" / "page.html").exists()
    assert run(*words, "--continue", "--page") == Exit.REFUSED
    assert (tmp_path / "out" / "b" / "page.html").is_file()


def test_a_share_without_work_and_the_next_batch_keep_what_is_known(tiny_bundle, tmp_path, capfd):
    """Job arrays have more shares than there are patients; another call is another cohort."""
    ct, pet = head()
    for name in ("DOE-JOHN", "ROE-JANE"):
        write_dicom(HEAD_GRID.image(ct), HEAD_GRID.image(pet), tmp_path / "in" / name, name)
    shutil.rmtree(tmp_path / "in" / "ROE-JANE" / "CT")  # a PET by itself
    options = ("--weights", tiny_bundle, "--no-picture", "--dicom", "-o", tmp_path / "out")
    shares = [run("predict", tmp_path / "in", *options, "--part", f"{k}/3") for k in (1, 2, 3)]
    assert shares == [Exit.OK, Exit.REFUSED, Exit.OK]
    failures = tmp_path / "out" / "failures-2of3.csv"
    assert list(pd.read_csv(failures)["patient"]) == ["patient-002"]
    assert "0 patients: 0 predicted" in capfd.readouterr().out
    for name in ("a", "b"):
        sitk.WriteImage(tiny_ct(), str(tmp_path / f"{name}_0000.nii.gz"))
        (tmp_path / f"{name}_0001.nii.gz").write_bytes(b"")
    lists = []
    for name in ("a", "b"):
        lists.append(tmp_path / f"{name}.csv")
        row = f"{name},{name}_0000.nii.gz,{name}_0001.nii.gz\n"
        lists[-1].write_text("patient,ct,pet\n" + row + row.replace(f"{name},", f"{name}2,", 1))
        assert run("predict", lists[-1], *options[:-3], *options[-2:]) == Exit.REFUSED
    known = pd.read_csv(tmp_path / "out" / "failures.csv")["patient"]
    assert sorted(known) == ["a", "a2", "b", "b2"] and failures.exists()
    with pytest.raises(RefusedError, match="no patient is read from DICOM"):
        cli.scans.predict([lists[0]], tmp_path / "out", str(tiny_bundle), dicom=True)


def test_what_ends_a_cohort_leaves_tables_of_what_is_there(tiny_bundle, tmp_path, monkeypatch):
    folder, out = tmp_path / "imagesTs", tmp_path / "out"
    folder.mkdir()
    for name in ("a", "b", "c"):
        sitk.WriteImage(tiny_ct(), str(folder / f"{name}_0000.nii.gz"))
        sitk.WriteImage(tiny_pet(), str(folder / f"{name}_0001.nii.gz"))
    options = ("-o", out, "--weights", tiny_bundle, "--no-picture")
    assert run("predict", tmp_path, *options) == Exit.OK
    (folder / "a_0001.nii.gz").write_bytes(b"")  # is removed, as it is of these files no longer
    predict, seen = cohort.predict_patient, []

    def ending(source, *rest):
        seen.append(source.patient_id)
        if source.patient_id == "b":
            raise SystemExit(143)
        return predict(source, *rest)

    monkeypatch.setattr(cohort, "predict_patient", ending)
    os.utime(folder / "b_0001.nii.gz", (0, 0))
    assert run("predict", tmp_path, *options, "--continue") == 143 and seen == ["a", "b"]
    assert list(pd.read_csv(out / "cohort.csv")["patient"]) == ["b", "c"]
    assert list(pd.read_csv(out / "failures.csv")["patient"]) == ["a"]


def test_a_disk_without_locks_is_said_before_the_work(tiny_bundle, tmp_path, monkeypatch, capfd):
    folder, out = tmp_path / "imagesTs", tmp_path / "out"
    folder.mkdir()
    for name in ("a", "b"):
        sitk.WriteImage(tiny_ct(), str(folder / f"{name}_0000.nii.gz"))
        sitk.WriteImage(tiny_pet(), str(folder / f"{name}_0001.nii.gz"))

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    options = ("-o", out, "--weights", tiny_bundle, "--no-picture")
    assert run("predict", tmp_path, *options) == Exit.REFUSED
    said = capfd.readouterr().err
    assert f"{out}/.cohort.csv.lock: No locks available, expected a disk that has locks" in said
    assert not (out / "a").exists()


def test_one_patient_mended_in_a_cohorts_folder_mends_its_tables(tiny_bundle, tmp_path):
    folder, out = tmp_path / "imagesTs", tmp_path / "out"
    folder.mkdir()
    for name in ("a", "b"):
        sitk.WriteImage(tiny_ct(), str(folder / f"{name}_0000.nii.gz"))
        sitk.WriteImage(tiny_pet(), str(folder / f"{name}_0001.nii.gz"))
    whole = (folder / "a_0001.nii.gz").read_bytes()
    (folder / "a_0001.nii.gz").write_bytes(b"")
    options = ("-o", out, "--weights", tiny_bundle, "--no-picture")
    assert run("predict", tmp_path, *options) == Exit.REFUSED
    assert (out / "failures.csv").is_file()
    (folder / "a_0001.nii.gz").write_bytes(whole)
    pair = (folder / "a_0000.nii.gz", folder / "a_0001.nii.gz")
    assert run("predict", *pair, *options) == Exit.OK
    assert not (out / "failures.csv").exists() and (out / "a" / "thumbnail.png").is_file()
    assert list(pd.read_csv(out / "cohort.csv")["patient"]) == ["a", "b"]
    sitk.WriteImage(tiny_label(), str(tmp_path / "mask.nii.gz"))
    assert run("predict", *pair, *options, "--mask", tmp_path / "mask.nii.gz", "--continue") == 0
    row = pd.read_csv(out / "cohort.csv").iloc[0]
    assert (row["GTVp_lesions"], row["GTVn_lesions"]) == (1, 1)
    # Alone in a folder it has no tables.
    alone = ("-o", tmp_path / "alone", *options[2:])
    assert run("predict", *pair, *alone) == Exit.OK
    assert not (tmp_path / "alone" / "cohort.csv").exists()


def test_predict_many_with_umlauts_and_nobody_who_listens(tiny_bundle, tmp_path):
    folder = tmp_path / "imagesTs"
    folder.mkdir()
    for name in ("Müller", "Øre"):
        for number, image in enumerate((tiny_ct(), tiny_pet())):
            sitk.WriteImage(image, str(folder / f"{name}_000{number}.nii.gz"))
    command = [sys.executable, "-m", "hmvnet.cli", "predict", str(tmp_path), "--no-picture"]
    command += ["-o", str(tmp_path / "ö"), "--weights", str(tiny_bundle), "--region", "centre"]
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    script = f"{shlex.join(command)} | head -0; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert {p.parent.name for p in (tmp_path / "ö").glob("*/mask.nii.gz")} == {"Müller", "Øre"}


def test_settings_are_printed_as_a_run_would_use_them(capsys):
    assert run("settings", "training.steps=7") == 0
    assert "<steps>7</steps>" in capsys.readouterr().out
    assert run("settings", "--markdown") == 0
    assert "| `steps` |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "called"),
    [
        (("train", "data.root=x", "--fold", "1"), "segmentation_train"),
        (("train", "--task", "2"), "survival_train"),
        (("eval", "--task", "1", "data.root=x"), "segmentation_eval"),
        (("eval", "--task", "2"), "survival_eval"),
        (("compare", "--network", "hmvnet"), "segmentation_compare"),
        (("compare", "--task", "2", "--repeats", "1"), "survival_compare"),
    ],
)
def test_the_names_of_before_are_passed_on(words, called, monkeypatch):
    calls = []
    monkeypatch.setattr(cli.root, called, lambda *arguments: calls.append(arguments))
    assert run(*words) == 0
    assert len(calls) == 1


@pytest.mark.parametrize("script", ["train", "eval"])
def test_the_methods_own_two_commands(script):
    from conftest import ROOT

    command = [sys.executable, str(ROOT / "model" / f"{script}.py"), "training.stepz=1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == Exit.REFUSED and "training.steps" in done.stderr
