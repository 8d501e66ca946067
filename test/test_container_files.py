"""The container's files: what the scripts ask of the engine, and the comparison of outputs.

No engine is needed: a script stands in for it, notes every call and copies stored outputs. That
the Dockerfile builds and the image runs is shown by ``.ci/container.sh``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ["build.sh", "test.sh", "export.sh", ".ci/container.sh"]
MASK = "images/tumor-lymph-node-segmentation/output.mha"

# Acts as ``docker``: notes its arguments; ``run IMAGE`` copies $FAKE_OUTPUTS to the folder mounted
# at /output; ``run --entrypoint python3`` runs the script with the mounts' paths put in.
FAKE_ENGINE = """
import json, os, shutil, subprocess, sys
arguments = sys.argv[1:]
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(json.dumps(arguments) + "\\n")
if arguments[:2] == ["image", "inspect"]:
    asked = {"User": os.environ.get("FAKE_USER", "1000:1000"), "Env": os.environ.get("FAKE_ENV")}
    print(next((told for name, told in asked.items() if name in arguments[3]), 2_000_000_000))
elif arguments[0] == "save":
    sys.stdout.write("the image")
    sys.exit(int(os.environ.get("FAKE_SAVE_EXIT", "0")))
elif arguments[0] == "run":
    values = [b for a, b in zip(arguments, arguments[1:]) if a == "--volume" and ":" in b]
    mounts = {v.split(":")[1]: v.split(":")[0] for v in values}
    if "python3" in arguments:
        command = arguments[arguments.index("/compare_outputs.py"):]
        for inside, outside in mounts.items():
            command = [outside + word[len(inside):] if word.startswith(inside) else word
                       for word in command]
        sys.exit(subprocess.run([sys.executable, *command]).returncode)
    if "/output" in mounts:
        shutil.copytree(os.environ["FAKE_OUTPUTS"], mounts["/output"], dirs_exist_ok=True)
"""


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the scripts with one sample case, in a folder whose name has a space."""
    root = tmp_path / "a house"
    (root / "test").mkdir(parents=True)
    for name in ("build.sh", "test.sh", "export.sh", "test/compare_outputs.py"):
        shutil.copy(ROOT / name, root / name)
    case = root / "test/cases/one"
    (case / "input").mkdir(parents=True)
    (case / "input/ehr.json").write_text("{}")
    write_outputs(case / "expected")
    bundle = root / "weights/hmvnet-base"
    bundle.mkdir(parents=True)
    (bundle / "manifest.json").write_text("{}")
    return root


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-in under DOCKER; gives the file in which it notes its calls."""
    fake = tmp_path / "engine.py"
    fake.write_text(FAKE_ENGINE)
    monkeypatch.setenv("DOCKER", f"{sys.executable} {fake}")
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "calls"))
    for name in ("IMAGE", "BASE_IMAGE", "WEIGHTS", "MODEL", "HMVNET_TASK", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "calls"


def calls_of(log: Path) -> list[list[str]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def write_outputs(
    folder: Path, *, moved: float = 0.0, risk: object = 0.25, label: int = 1, cut: int = 0
) -> Path:
    """A mask with one lesion of each class and a risk, as the container would write them."""
    array = np.zeros((8, 12, 16), np.uint8)
    array[1:5, 2 + cut : 8, 2:8] = label
    array[5:8, 8:12, 10:16] = 2
    mask = sitk.GetImageFromArray(array)
    mask.SetSpacing((1.0, 1.0, 2.5))
    mask.SetOrigin((-100.0, 12.5 + moved, 3.0))
    (folder / MASK).parent.mkdir(parents=True)
    sitk.WriteImage(mask, str(folder / MASK), True)
    (folder / "rfs.json").write_text(json.dumps(risk))
    return folder


def write_truth(house: Path, least_dice: str = "0.9", *, cut: int = 0) -> Path:
    """Give the sample case a truth that its stored mask meets (``cut=0``) or not, and a floor."""
    case = house / "test/cases/one"
    shutil.copy(write_outputs(house / "true", cut=cut) / MASK, case / "truth.mha")
    if least_dice:
        (case / "least_dice").write_text(least_dice + "\n")
    return case / "expected"


def run(script: Path, *arguments: str, **environment: object) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    command = ["bash", str(script), *arguments]
    return subprocess.run(command, cwd="/", env=variables, capture_output=True, text=True)


def compare(expected: Path, found: Path, *options: str) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "test/compare_outputs.py")
    command = [sys.executable, script, str(expected), str(found), *options]
    return subprocess.run(command, capture_output=True, text=True)


# --- comparison


def test_equal_outputs_pass(tmp_path: Path) -> None:
    answer = compare(write_outputs(tmp_path / "a"), write_outputs(tmp_path / "b", risk=0.2549))
    assert answer.returncode == 0, answer.stdout
    assert "FAILED" not in answer.stdout


@pytest.mark.parametrize(
    ("change", "row"),
    [
        ({"moved": 0.01}, "origin"),
        ({"cut": 1}, "GTVp Dice"),
        ({"label": 3}, "labels"),
        ({"risk": 0.2551}, "risk"),
        ({"risk": float("nan")}, "risk"),
        ({"risk": [0.25]}, "risk"),
    ],
)
def test_each_difference_fails_its_row(tmp_path: Path, change: dict, row: str) -> None:
    answer = compare(write_outputs(tmp_path / "a"), write_outputs(tmp_path / "b", **change))
    failed = [line for line in answer.stdout.splitlines() if line.endswith("FAILED")]
    assert answer.returncode == 1
    assert any(line.strip().startswith(row) for line in failed), answer.stdout


def test_missing_and_stray_files_fail(tmp_path: Path) -> None:
    expected, found = write_outputs(tmp_path / "a"), write_outputs(tmp_path / "b")
    (found / "rfs.json").rename(found / "rfs.json.part")
    answer = compare(expected, found)
    assert answer.returncode == 1
    assert re.search(r"file .*rfs\.json .*missing .*FAILED", answer.stdout)
    assert re.search(r"other files .*rfs\.json\.part .*FAILED", answer.stdout)


def test_one_task_needs_its_own_socket_only(tmp_path: Path) -> None:
    expected, found = write_outputs(tmp_path / "a"), write_outputs(tmp_path / "b")
    (found / "rfs.json").unlink()
    assert compare(expected, found, "--task", "1").returncode == 0
    assert compare(expected, found, "--task", "2").returncode == 1


@pytest.mark.parametrize(("cut", "code"), [(1, 0), (3, 1)])
def test_a_mask_that_equals_the_stored_one_has_to_meet_the_truth_too(
    tmp_path: Path, cut: int, code: int
) -> None:
    expected, found = write_outputs(tmp_path / "a"), write_outputs(tmp_path / "b")
    truth = str(write_outputs(tmp_path / "truth", cut=cut) / MASK)
    answer = compare(expected, found, "--truth", truth, "--least-dice", "0.9")
    assert answer.returncode == code
    dice = 2 * (6 - cut) / (12 - cut)
    row = rf"GTVp Dice with truth +>= 0\.9 +{dice:.4f} .* {'FAILED' if code else 'ok'}$"
    assert re.search(row, answer.stdout, re.M), answer.stdout
    assert re.search(r"GTVp Dice +>= 0\.99 +1\.0000 .* ok$", answer.stdout, re.M)
    assert re.search(r"GTVn Dice with truth .* ok$", answer.stdout, re.M)


def test_a_label_that_the_truth_lacks_misses_it(tmp_path: Path) -> None:
    expected, found = (write_outputs(tmp_path / name, label=2) for name in "ab")
    truth = str(write_outputs(tmp_path / "truth") / MASK)
    answer = compare(expected, found, "--truth", truth, "--least-dice", "0.1")
    assert answer.returncode == 1
    assert re.search(r"GTVp Dice with truth .*0\.0000 .*FAILED", answer.stdout)


def test_a_truth_of_another_size_fails(tmp_path: Path) -> None:
    expected, found = write_outputs(tmp_path / "a"), write_outputs(tmp_path / "b")
    truth = tmp_path / "truth.mha"
    sitk.WriteImage(sitk.Image(4, 4, 4, sitk.sitkUInt8), str(truth))
    answer = compare(expected, found, "--truth", str(truth))
    assert answer.returncode == 1
    assert re.search(r"size of truth .*4 4 4 .*16 12 8 .*FAILED", answer.stdout)


def test_of_other_weights_the_form_alone_is_compared(tmp_path: Path) -> None:
    expected = write_outputs(tmp_path / "a")
    (expected / "t-stage.json").write_text('"T1"')
    for number, (change, stage, code) in enumerate(
        [
            ({"cut": 4, "risk": -7.5}, "T4", 0),
            ({"label": 3}, "T1", 1),
            ({"moved": 0.01}, "T1", 1),
            ({"risk": float("nan")}, "T1", 1),
            ({}, "T5", 1),
        ]
    ):
        found = write_outputs(tmp_path / str(number), **change)
        (found / "t-stage.json").write_text(json.dumps(stage))
        answer = compare(expected, found, "--form", "--truth", str(expected / MASK))
        assert answer.returncode == code, answer.stdout


def test_a_risk_alone_is_not_held_against_the_truth(tmp_path: Path) -> None:
    expected, found = write_outputs(tmp_path / "a"), write_outputs(tmp_path / "b")
    shutil.rmtree(found / "images")
    truth = str(expected / MASK)
    assert compare(expected, found, "--task", "2", "--truth", truth).returncode == 0


# --- test.sh


def test_cases_run_as_on_the_platform(house: Path, engine: Path) -> None:
    answer = run(house / "test.sh", FAKE_OUTPUTS=house / "test/cases/one/expected", GPU="none")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    call = next(call for call in calls_of(engine) if call[0] == "run")
    line = " ".join(call)
    for flag in (
        "--network none",
        "--read-only",
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        "--volume /tmp ",
        "--memory 16g",
        "--ulimit data=17179869184:17179869184",
        "/input:/input:ro",
        "/output:/output",
    ):
        assert flag in line
    assert call[-1] == "hmvnet"
    assert "GTVp Dice" in answer.stdout


def test_an_image_of_one_year_or_task_is_tried_on_what_it_is_for(house: Path, engine: Path) -> None:
    one = house / "test/cases/one"
    two = Path(shutil.copytree(one, one.with_name("two")))
    (two / "expected/t-stage.json").write_text('"T1"')
    stored = {"FAKE_OUTPUTS": one / "expected", "GPU": "none"}
    answer = run(house / "test.sh", FAKE_ENV="HMVNET_INTERFACE=2025\nHMVNET_TASK=2", **stored)
    assert answer.returncode == 1  # the mask is too much for task 2
    assert (
        "two (task 2" in answer.stdout and "left out: the image is built for 2025" in answer.stdout
    )
    runs = [call for call in calls_of(engine) if "/output:/output" in " ".join(call)]
    assert len(runs) == 1 and "HMVNET_TASK=2" in runs[0]
    answer = run(house / "test.sh", FAKE_ENV="HMVNET_INTERFACE=2025", **stored)
    assert answer.returncode == 0 and "all 1 cases passed" in answer.stdout
    answer = run(house / "test.sh", "one", FAKE_ENV="HMVNET_INTERFACE=2026", **stored)
    assert answer.returncode == 1 and "no case of 2026 among these" in answer.stderr
    # Of 2026 there are no tasks, whatever is asked for.
    run(house / "test.sh", "two", HMVNET_TASK="1", **stored)
    assert (
        "HMVNET_TASK=both" in [c for c in calls_of(engine) if "/output:/output" in " ".join(c)][-1]
    )


def test_weights_of_ones_own_need_not_give_the_stored_values(
    house: Path, engine: Path, tmp_path: Path
) -> None:
    (tmp_path / "bundle").mkdir()
    given = {"MODEL": tmp_path / "bundle", "GPU": "none"}
    given["FAKE_OUTPUTS"] = write_outputs(tmp_path / "other", risk=3.0, cut=2)
    assert run(house / "test.sh", **given).returncode == 0
    assert run(house / "test.sh", **given, MIN_DICE="0.99").returncode == 1


def test_a_wrong_output_fails_the_run(house: Path, engine: Path, tmp_path: Path) -> None:
    wrong = write_outputs(tmp_path / "wrong", risk=0.5)
    answer = run(house / "test.sh", FAKE_OUTPUTS=wrong, GPU="none")
    assert answer.returncode == 1
    assert "1 of 1 cases failed: one" in answer.stderr


def test_an_output_that_is_stored_and_not_true_fails_the_run(house: Path, engine: Path) -> None:
    stored = write_truth(house, cut=3)
    answer = run(house / "test.sh", FAKE_OUTPUTS=stored, GPU="none")
    assert answer.returncode == 1
    assert re.search(r"GTVp Dice with truth .*FAILED", answer.stdout)
    assert answer.stdout.count("FAILED") == 1
    assert "1 of 1 cases failed: one" in answer.stderr


def test_an_output_that_is_stored_and_true_passes_the_run(house: Path, engine: Path) -> None:
    answer = run(house / "test.sh", FAKE_OUTPUTS=write_truth(house), GPU="none")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert re.search(r"GTVp Dice with truth +>= 0\.9 .* ok$", answer.stdout, re.M)


def test_a_truth_without_a_floor_fails_the_run(house: Path, engine: Path) -> None:
    answer = run(house / "test.sh", FAKE_OUTPUTS=write_truth(house, least_dice=""), GPU="none")
    assert answer.returncode == 1
    assert "least_dice" in answer.stderr
    assert "1 of 1 cases failed: one" in answer.stderr


@pytest.mark.parametrize("end", ["", "\n"])
def test_settings_of_a_case_are_the_container_s_arguments(
    house: Path, engine: Path, end: str
) -> None:
    case = house / "test/cases/one"
    (case / "settings").write_text("--set a.b=c\n--set d.e=f" + end)
    answer = run(house / "test.sh", FAKE_OUTPUTS=case / "expected", GPU="none")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    call = next(call for call in calls_of(engine) if call[0] == "run")
    assert call[-5:] == ["hmvnet", "--set", "a.b=c", "--set", "d.e=f"]


def test_a_case_may_be_of_one_task_alone(house: Path, engine: Path) -> None:
    case = house / "test/cases/one"
    (case / "settings").write_text("--task 1 --set a.b=c\n")
    for task in ("both", "2"):  # what the platform would be asked for; the case knows better
        answer = run(
            house / "test.sh", FAKE_OUTPUTS=case / "expected", GPU="none", HMVNET_TASK=task
        )
        assert re.search(r"other files +none +.*rfs\.json +FAILED", answer.stdout), answer.stdout
    (case / "expected" / "rfs.json").unlink()
    for task in ("both", "2"):
        answer = run(
            house / "test.sh", FAKE_OUTPUTS=case / "expected", GPU="none", HMVNET_TASK=task
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr


def test_an_image_that_runs_as_root_is_refused(house: Path, engine: Path) -> None:
    for user in ("", "root", "0", "0:0"):
        answer = run(house / "test.sh", FAKE_USER=user)
        assert answer.returncode == 1
        assert "runs as root" in answer.stderr
    assert all(call[0] != "run" for call in calls_of(engine))


def test_an_unknown_case_is_refused(house: Path, engine: Path) -> None:
    answer = run(house / "test.sh", "two")
    assert answer.returncode == 1
    assert "cases/two/expected: no such folder" in answer.stderr


# --- build.sh and export.sh


def test_build_passes_only_what_is_set(house: Path, engine: Path) -> None:
    assert run(house / "build.sh").returncode == 0
    base = run(house / "build.sh", BASE_IMAGE="debian", DOCKER_BUILD_ARGS="-v /w:/w:ro")
    assert base.returncode == 0, base.stderr
    plain, with_base = (call for call in calls_of(engine) if call[0] == "build")
    assert "--build-arg" not in plain
    assert with_base[1:3] == ["-v", "/w:/w:ro"]
    assert with_base[with_base.index("--build-arg") + 1] == "BASE_IMAGE=debian"


def test_model_archive_holds_the_files_at_its_top(house: Path, engine: Path) -> None:
    answer = run(house / "export.sh", "model", OUTPUT_DIR=house / "out")
    assert answer.returncode == 0, answer.stderr
    with tarfile.open(house / "out/model.tar.gz") as archive:
        member = archive.getmember("./manifest.json")
    assert member.mode & 0o044 == 0o044


def test_a_bundle_without_manifest_is_not_exported(house: Path, engine: Path) -> None:
    answer = run(house / "export.sh", "model", "no-such-bundle", OUTPUT_DIR=house / "out")
    assert answer.returncode == 1
    assert "no-such-bundle" in answer.stderr
    assert not (house / "out/model.tar.gz").exists()


def test_a_failed_save_leaves_no_image_archive(house: Path, engine: Path) -> None:
    answer = run(house / "export.sh", "image", OUTPUT_DIR=house / "out", FAKE_SAVE_EXIT=1)
    assert answer.returncode != 0
    assert not (house / "out/hmvnet.tar.gz").exists()


# --- the files themselves


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_is_strict_and_clean(name: str) -> None:
    script = ROOT / name
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(script)], check=True)


def test_build_context_is_an_allow_list_that_holds_what_is_copied() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line]
    rules = [line for line in lines if not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = re.findall(r"^COPY (?:--\S+ )*(\S+)", (ROOT / "Dockerfile").read_text(), re.M)
    assert {source.removesuffix("/${WEIGHTS}") for source in copied} == allowed
    left_out = [rule for rule in rules[1:] if not rule.startswith(("!", "**"))]
    assert left_out and all((ROOT / rule).is_dir() for rule in left_out)


def test_last_user_of_the_image_is_not_root() -> None:
    users = re.findall(r"^USER (\S+)", (ROOT / "Dockerfile").read_text(), re.M)
    assert users[-1:] == ["1000:1000"]


def test_arguments_of_a_run_reach_the_entry_point() -> None:
    """Only the form in brackets passes them on, and a CMD would be in their place without any."""
    lines = re.findall(r"^(?:ENTRYPOINT|CMD) .*", (ROOT / "Dockerfile").read_text(), re.M)
    assert lines == ['ENTRYPOINT ["python3", "/opt/app/process.py"]']


def test_pip_mounts_keep_local_sources_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels, index = tmp_path / "wheels", tmp_path / "index/simple"
    wheels.mkdir()
    index.mkdir(parents=True)
    monkeypatch.setenv("PIP_FIND_LINKS", f"{wheels} https://example.org/wheels")
    monkeypatch.setenv("PIP_INDEX_URL", index.as_uri())
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path))
    command = [sys.executable, str(ROOT / ".ci/pip_mounts.py"), str(tmp_path / "pip.conf")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"--volume={wheels}:{wheels}:ro" in answer.stdout.split()
    assert f"--volume={index.parent}:{index.parent}:ro" in answer.stdout.split()
    assert "example.org" not in answer.stdout
    settings = (tmp_path / "pip.conf").read_text()
    assert f"find-links = {wheels} https://example.org/wheels" in settings
    assert "cache-dir" not in settings
