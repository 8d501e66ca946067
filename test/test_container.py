"""The container's entry point, on what the platform gives it."""

import errno
import json
import math
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import HEAD_GRID, ROOT, head, tiny_ct, tiny_pet

from hmvnet import container
from hmvnet.case import Grid
from hmvnet.exits import Exit
from hmvnet.writing.challenge import INTERFACES, RISK_PATH

MASK_PATH = INTERFACES["2025"].mask


def run(input_dir, output_dir, bundle, *options: str) -> int:
    arguments = ["--input", str(input_dir), "--output", str(output_dir), "--weights", str(bundle)]
    return container.main([*arguments, "--device", "cpu", *options])


def files_in(folder) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def read_outputs(folder) -> tuple[np.ndarray, float]:
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / MASK_PATH)))
    return mask, json.loads((folder / RISK_PATH).read_text())


def last_error_line(capfd) -> str:
    lines = capfd.readouterr().err.strip().splitlines()
    return lines[-1] if lines else ""


def test_both_tasks(write_case, tmp_path, tiny_bundle, capsys):
    output = tmp_path / "output"
    words = ("--picture", str(tmp_path / "p.png"), "--page", str(tmp_path / "page.html"))
    assert run(write_case(), output, tiny_bundle, *words) == 0
    assert files_in(output) == [str(MASK_PATH), str(RISK_PATH)]
    mask = sitk.ReadImage(str(output / MASK_PATH))
    assert Grid.of(mask).same_as(Grid.of(tiny_ct()), 1e-6)
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert set(np.unique(sitk.GetArrayViewFromImage(mask))) <= {0, 1, 2}
    risk = json.loads((output / RISK_PATH).read_text())
    assert isinstance(risk, float) and math.isfinite(risk)
    said = capsys.readouterr().out
    assert "RFS risk" in said and "network" in said and str(output / MASK_PATH) in said
    assert (tmp_path / "p.png").stat().st_size > 10_000
    assert (tmp_path / "page.html").stat().st_size > 10_000


@pytest.mark.parametrize("on_error", ["refuse", "answer"])
def test_what_an_earlier_patient_left_of_what_is_optional_is_gone(tmp_path, tiny_bundle, on_error):
    (tmp_path / "in").mkdir()
    left = [tmp_path / name for name in ("report.json", "page.html", "picture.png")]
    for path in left:
        path.write_text("of the patient before")
    words = ("--report", left[0], "--page", left[1], "--picture", left[2], "--on-error", on_error)
    code = run(tmp_path / "in", tmp_path / "out", tiny_bundle, *map(str, words))
    assert (code == 0) == (on_error == "answer")
    assert not any(path.exists() for path in left)


def test_a_verdict_of_review_is_said_and_with_strict_an_exit_code(
    write_case, tmp_path, tiny_bundle, capsys
):
    """The tiny case is no head: a result, exit code 0, and reason to look at it."""
    report = tmp_path / "report.json"
    assert run(write_case(), tmp_path / "output", tiny_bundle, "--report", str(report)) == 0
    assert "no-head" in json.loads(report.read_text())["verdict"]["codes"]
    assert "verdict review (no-head" in capsys.readouterr().out
    assert run(write_case(), tmp_path / "output", tiny_bundle, "--strict") == Exit.REVIEW
    assert files_in(tmp_path / "output") == [str(MASK_PATH), str(RISK_PATH)]


def test_a_ct_without_its_intercept_gives_the_right_result_and_says_so(
    write_case, tmp_path, tiny_bundle
):
    """Case 06: a GTVp of 156 mL with SUVmax 0, and one note."""
    ct, pet = head()
    images = {"pet": HEAD_GRID.image(pet)}
    masks = []
    for stored in (ct, ct + 1024):
        case = write_case(**images, ct=HEAD_GRID.image(stored.astype(np.int16)))
        report = tmp_path / "report.json"
        assert run(case, tmp_path / "output", tiny_bundle, "--report", str(report)) == 0
        masks.append(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "output" / MASK_PATH))))
    np.testing.assert_array_equal(*masks)
    assert "ct-repaired" in json.loads(report.read_text())["verdict"]["codes"]


def test_the_report_explains_the_risk(write_case, tmp_path, tiny_bundle):
    """Its variables and the networks' part make up the risk; it names nobody."""
    path = tmp_path / "report.json"
    assert run(write_case(), tmp_path / "output", tiny_bundle, "--report", str(path)) == 0
    report = json.loads(path.read_text())
    risk = report["risk"]
    assert risk["value"] == pytest.approx(json.loads((tmp_path / "output" / RISK_PATH).read_text()))
    assert set(risk["branches"]) == {"image", "table", "lesions"}
    assert risk["variables"] and all(math.isfinite(v) for v in risk["variables"].values())
    assert "clinical use" in report["notice"] and isinstance(report["lesions"], list)


@pytest.mark.parametrize(("task", "expected"), [("1", [str(MASK_PATH)]), ("2", [str(RISK_PATH)])])
def test_one_task(write_case, tmp_path, tiny_bundle, task, expected):
    assert run(write_case(), tmp_path / "output", tiny_bundle, "--task", task) == 0
    assert files_in(tmp_path / "output") == expected


def test_same_input_same_output(write_case, tmp_path, tiny_bundle):
    for name in ("a", "b"):
        assert run(write_case(), tmp_path / name, tiny_bundle) == 0
    for path in (MASK_PATH, RISK_PATH):
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


@pytest.mark.parametrize("ehr", [None, {}, {"Age": None, "Gender": "x", "M-stage": 7}])
def test_missing_and_unknown_record_fields_give_a_risk(write_case, tmp_path, tiny_bundle, ehr):
    assert run(write_case(ehr=ehr), tmp_path / "output", tiny_bundle, "--task", "2") == 0
    assert math.isfinite(json.loads((tmp_path / "output" / RISK_PATH).read_text()))


BAD = {
    "missing image": {"ct": None},
    "no overlap": {"pet": "far"},
    "record that is not JSON": {"ehr": "nonsense"},
    "PET without signal": {"pet": "zero"},
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_in_one_clear_line_and_no_output(
    write_case, tmp_path, tiny_bundle, capfd, name
):
    changes = dict(BAD[name])
    if changes.get("pet") == "far":
        changes["pet"] = tiny_pet()
        changes["pet"].SetOrigin((9999.0, 0.0, 0.0))
    elif changes.get("pet") == "zero":
        changes["pet"] = tiny_pet() * 0
    output = tmp_path / "output"
    (output / MASK_PATH).parent.mkdir(parents=True)
    (output / MASK_PATH).write_bytes(b"stale")
    assert run(write_case(**changes), output, tiny_bundle) == Exit.REFUSED
    assert files_in(output) == []
    line = last_error_line(capfd)
    assert line.startswith("error: ") and len(line) > 20


@pytest.mark.parametrize("damage", ["manifest", "hash", "missing"])
def test_damaged_weights(write_case, tmp_path, tiny_bundle, capfd, damage):
    import shutil

    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    if damage == "manifest":
        (bundle / "manifest.json").write_text("{}")
    elif damage == "hash":
        file = bundle / "fold0.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    else:
        (bundle / "fold0.safetensors").unlink()
    assert run(write_case(), tmp_path / "output", bundle) == Exit.REFUSED
    assert "error: " in last_error_line(capfd)
    assert files_in(tmp_path / "output") == []


def test_runs_as_a_process_with_nothing_installed_on_the_path(write_case, tmp_path, tiny_bundle):
    """From another working directory, and with SIGTERM's exit code free for the platform."""
    command = [sys.executable, str(ROOT / "process.py"), "--input", str(write_case())]
    command += ["--output", str(tmp_path / "out"), "--weights", str(tiny_bundle), "--task", "1"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert files_in(tmp_path / "out") == [str(MASK_PATH)]


def test_out_of_memory_is_a_clear_line(write_case, tmp_path, tiny_bundle, capfd, monkeypatch):
    monkeypatch.setattr(container, "run", lambda options: (_ for _ in ()).throw(MemoryError))
    assert run(write_case(), tmp_path / "output", tiny_bundle) == Exit.FAULT
    assert "out of memory" in last_error_line(capfd)


def test_unknown_device(write_case, tmp_path, tiny_bundle, capfd):
    arguments = ["--input", str(write_case()), "--output", str(tmp_path / "o")]
    code = container.main([*arguments, "--weights", str(tiny_bundle), "--device", "cuda:7"])
    assert code != 0 and "cuda:7" in last_error_line(capfd)


def test_settings_of_inference_are_honoured(write_case, tmp_path, tiny_bundle, capsys):
    """``--set inference.flips=true`` was once taken and not used, without a word."""
    words = ("--task", "1", "--set", "inference.flips=true")
    assert run(write_case(), tmp_path / "a", tiny_bundle, *words) == 0
    assert "2 of 2 network passes" in capsys.readouterr().out
    assert run(write_case(), tmp_path / "a", tiny_bundle, "--task", "1", "--flips") == 0
    assert "2 of 2 network passes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ("--set", "training.steps=3"),
        ("--set", "data.regio=centre"),
        ("--set", "data.region=chest"),
        ("--set", "data.region=centre"),  # a risk of another region's survival model
        ("--time-budget", "0"),
        ("--time-budget", "soon"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(write_case, tmp_path, tiny_bundle, words, capfd):
    assert run(write_case(), tmp_path / "output", tiny_bundle, *words) == Exit.REFUSED
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and files_in(tmp_path / "output") == []


def test_what_is_optional_and_fails_costs_only_itself(
    write_case, tmp_path, tiny_bundle, capfd, monkeypatch
):
    """A picture that could not be drawn once took the finished mask with it."""
    monkeypatch.setattr("hmvnet.writing.folder.write_picture", lambda *_: 1 / 0)
    picture, report = tmp_path / "p.png", tmp_path / "r.json"
    picture.write_bytes(b"another patient's")
    words = ("--picture", str(picture), "--report", str(report))
    assert run(write_case(), tmp_path / "output", tiny_bundle, *words) == Exit.INCOMPLETE
    assert files_in(tmp_path / "output") == [str(MASK_PATH), str(RISK_PATH)]
    said = capfd.readouterr()
    assert "p.png not written" in said.err and str(report) in said.out
    assert report.is_file() and not picture.exists() and f"wrote {picture}" not in said.out


@pytest.mark.parametrize("value", ["3", "", "Both", '"1,2"', "both # a comment"])
def test_a_task_of_the_environment_that_is_none(
    write_case, tmp_path, tiny_bundle, capfd, monkeypatch, value
):
    monkeypatch.setenv("HMVNET_TASK", value)
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / RISK_PATH).write_text("0.5")
    assert run(write_case(), tmp_path / "output", tiny_bundle) == Exit.REFUSED
    line = last_error_line(capfd)
    assert "HMVNET_TASK is" in line and "expected one of 1, 2, both" in line
    assert files_in(tmp_path / "output") == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('"both"', [str(MASK_PATH), str(RISK_PATH)]),
        ("both\r", [str(MASK_PATH), str(RISK_PATH)]),
        (" '2'\r\n", [str(RISK_PATH)]),
    ],
)
def test_what_an_env_file_leaves_around_a_value_is_taken_off(
    write_case, tmp_path, tiny_bundle, capfd, monkeypatch, value, expected
):
    monkeypatch.setenv("HMVNET_TASK", value)
    monkeypatch.setenv("HMVNET_DEVICE", '"cpu"\r')
    words = ["--input", str(write_case()), "--output", str(tmp_path), "--weights", str(tiny_bundle)]
    assert container.main(words) == 0
    assert [name for name in files_in(tmp_path) if not name.startswith("input")] == expected
    assert not capfd.readouterr().err


def test_the_environment_s_device_and_names_nothing_reads(
    write_case, tmp_path, tiny_bundle, capfd, monkeypatch
):
    monkeypatch.setenv("HMVNET_DEVICE", "gpu")
    monkeypatch.setenv("HMVNET_TASKS", "1")
    words = ["--input", str(write_case()), "--output", str(tmp_path), "--weights", str(tiny_bundle)]
    assert container.main(words) == Exit.REFUSED
    unknown, refusal = capfd.readouterr().err.strip().splitlines()
    assert unknown.startswith("note: HMVNET_TASKS: no such variable")
    assert refusal == (
        "error: HMVNET_DEVICE: device 'gpu': expected auto, cpu, cuda or cuda:<number>"
    )
    assert container.main([*words, "--device", "cpu"]) == 0  # the command line goes before


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    write_case, tmp_path, tiny_bundle, capfd, monkeypatch
):
    def full(dir):
        raise OSError(errno.EROFS, "Read-only file system", str(dir))

    monkeypatch.setattr("hmvnet.files.TemporaryFile", full)
    assert run(write_case(), tmp_path / "output", tiny_bundle) == Exit.REFUSED
    said = capfd.readouterr()
    assert "cannot be written" in said.err and "network" not in said.out


# What has no name has none, and the entry point runs.
NAMELESS = "import pwd, runpy, sys; pwd.getpwuid = {}.__getitem__; sys.argv = sys.argv[1:]; "
NAMELESS += "runpy.run_path(sys.argv[0], run_name='__main__')"


def test_a_hostile_environment_changes_nothing(write_case, tmp_path, tiny_bundle):
    """No home, no name, no scratch folder, ASCII, nonsense in what libraries read, few files."""
    assert run(write_case(), tmp_path / "friendly", tiny_bundle) == 0
    folder = tmp_path / "Müller, Jörg 日本"
    write_case().rename(folder)
    command = [sys.executable, "-c", NAMELESS, str(ROOT / "process.py"), "--input", str(folder)]
    command += ["--output", str(tmp_path / "ö"), "--weights", str(tiny_bundle), "--device", "cpu"]
    command += ["--report", str(tmp_path / "ß.json"), "--picture", str(tmp_path / "ü" / "p.png")]
    nowhere = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME"), "/nonexistent")
    nobody = dict.fromkeys(("USER", "LOGNAME", "LNAME", "USERNAME"), "")
    nonsense = {"OMP_NUM_THREADS": "abc", "COLUMNS": "1", "TERM": "dumb", "TZ": "../nonsense"}
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    others = {"PYTHONIOENCODING": "ascii:strict", "PYTHONHASHSEED": "77", "NO_COLOR": "1"}
    given = os.environ | nowhere | nobody | nonsense | ascii_only | others
    given["CUDA_VISIBLE_DEVICES"] = "nonsense"
    script = f"ulimit -n 64; {shlex.join(command)} >&-"
    done = subprocess.run(["bash", "-c", script], env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert files_in(tmp_path / "ö") == [str(MASK_PATH), str(RISK_PATH)]
    masks, risks = zip(*(read_outputs(tmp_path / name) for name in ("friendly", "ö")))
    assert np.mean(masks[0] != masks[1]) < 1e-3  # another number of threads may round otherwise
    assert risks[1] == pytest.approx(risks[0], abs=1e-3)
    assert (tmp_path / "ß.json").is_file() and (tmp_path / "ü" / "p.png").is_file()


def test_little_memory_is_one_line_and_no_output(write_case, tmp_path, tiny_bundle):
    command = [sys.executable, str(ROOT / "process.py"), "--input", str(write_case())]
    command += ["--output", str(tmp_path / "out"), "--weights", str(tiny_bundle)]
    script = f"ulimit -v 500000; {shlex.join(command)}"
    given = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(["bash", "-c", script], env=given, capture_output=True, text=True)
    assert done.returncode == Exit.FAULT
    assert done.stderr.splitlines()[0].startswith("error: out of memory")
    assert files_in(tmp_path / "out") == []


@pytest.mark.parametrize(
    "place",
    ["input/ehr.json", f"output/{RISK_PATH}", "output/images", "mine", "pipe", "link", "p.png"],
)
def test_a_report_never_takes_the_place_of_something_else(
    write_case, tmp_path, tiny_bundle, capfd, place
):
    """Of a device neither: ``--report /dev/stdout`` was removed from ``/dev`` first."""
    folder = write_case()
    (tmp_path / "mine").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("log")
    (tmp_path / "output" / "images").mkdir(parents=True)
    before = (folder / "ehr.json").read_text()
    words = ("--report", str(tmp_path / place), "--picture", str(tmp_path / "p.png"))
    assert run(folder, tmp_path / "output", tiny_bundle, *words) == Exit.REFUSED
    assert "required output" in last_error_line(capfd)
    assert (folder / "ehr.json").read_text() == before and (tmp_path / "mine").is_dir()


@pytest.mark.parametrize("close", ["| head -1", ">&-"])
def test_whoever_reads_along_may_go(write_case, tmp_path, tiny_bundle, close):
    command = [sys.executable, str(ROOT / "process.py"), "--input", str(write_case())]
    command += ["--output", str(tmp_path / "out"), "--weights", str(tiny_bundle)]
    subprocess.run(["bash", "-c", f"{shlex.join(command)} {close}"], capture_output=True)
    assert files_in(tmp_path / "out") == [str(MASK_PATH), str(RISK_PATH)]


def test_an_output_that_cannot_hold_a_character_costs_nothing(write_case, tmp_path, tiny_bundle):
    command = [sys.executable, str(ROOT / "process.py"), "--input", str(write_case())]
    command += ["--output", str(tmp_path / "ä"), "--weights", str(tiny_bundle), "--task", "2"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert files_in(tmp_path / "ä") == [str(RISK_PATH)]
