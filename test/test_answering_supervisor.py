"""A valid answer in any case: with other processes killed, late, or told to stop."""

import json
import os
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import CT_GRID, PET_GRID, ROOT, tiny_ct

from hmvnet import container
from hmvnet.answering import supervisor
from hmvnet.answering.supervisor import COMMONEST_N, COMMONEST_T, last_resort, supervise
from hmvnet.case import Grid
from hmvnet.exits import Exit
from hmvnet.files import MACHINE
from hmvnet.writing.challenge import INTERFACES, N_PATH, RISK_PATH, T_PATH, OutputFolder


def answered(folder, year: str = "2026") -> tuple[sitk.Image, dict[str, object]]:
    """What the platform would read; fails where it would."""
    mask = sitk.ReadImage(str(folder / INTERFACES[year].mask))
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert set(np.unique(sitk.GetArrayViewFromImage(mask))) <= {0, 1, 2}
    wanted = INTERFACES[year].paths("both")[1:]
    values = {path.name: json.loads((folder / path).read_text()) for path in wanted}
    assert isinstance(values[RISK_PATH.name], float) and np.isfinite(values[RISK_PATH.name])
    if year == "2026":
        assert values[T_PATH.name] in ("T1", "T2", "T3", "T4")
        assert values[N_PATH.name] in ("N0", "N1", "N2", "N3")
    files = {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
    assert files == set(INTERFACES[year].paths("both")), "nothing else is left behind"
    return mask, values


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def least(write_case, tmp_path) -> OutputFolder:
    """An output folder with the last resort's files in it."""
    output = OutputFolder(tmp_path / "output", INTERFACES["2026"])
    output.clear()
    last_resort(write_case(), output, "both")
    return output


def test_the_last_resort_is_valid_and_on_the_ct_s_grid(least):
    mask, values = answered(least.root)
    assert Grid.of(mask).same_as(CT_GRID, 1e-6) and not sitk.GetArrayViewFromImage(mask).any()
    assert (values[T_PATH.name], values[N_PATH.name]) == (COMMONEST_T, COMMONEST_N)


@pytest.mark.parametrize(
    ("damage", "grid"),
    [
        ({"ct": None}, PET_GRID),
        ({"ct": None, "pet": None}, Grid((2, 2, 2), (1.0, 1.0, 1.0))),
        ({"pet": None}, CT_GRID),
    ],
)
def test_the_last_resort_without_a_ct(write_case, tmp_path, damage, grid, capfd):
    output = OutputFolder(tmp_path / "output", INTERFACES["2026"])
    last_resort(write_case(**damage), output, "both")
    assert Grid.of(answered(output.root)[0]).same_as(grid, 1e-6)
    assert ("the CT's header cannot be read" in capfd.readouterr().err) == ("ct" in damage)


def test_the_last_resort_of_a_truncated_ct(write_case, tmp_path):
    folder = write_case()
    path = folder / "images" / "ct" / "uuid.mha"
    path.write_bytes(path.read_bytes()[:-200])
    output = OutputFolder(tmp_path / "output", INTERFACES["2025"])
    last_resort(folder, output, "both")
    assert Grid.of(answered(output.root, "2025")[0]).same_as(CT_GRID, 1e-6)


BAD_ENDS = {
    "an exit code": ("raise SystemExit(3)", "exit code 3"),
    "out of memory's kill": ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
    "a crash of a library": ("import os; os.abort()", "SIGABRT"),
}


@pytest.mark.parametrize("name", BAD_ENDS)
def test_an_attempt_that_ends_badly_is_followed_by_the_next(least, name, capfd):
    code, word = BAD_ENDS[name]
    first, then = python(code), python("print('the second way')")
    assert supervise(lambda way: then if way.name == "frugal" else first, least, 60) == Exit.OK
    said = capfd.readouterr()
    assert word in said.err and "the second way" in said.out and "no attempt" not in said.err
    answered(least.root)


def test_no_attempt_ends_well(least, capfd):
    assert supervise(lambda way: python("raise SystemExit(1)"), least, 60) == Exit.OK
    assert "the least answer stands" in capfd.readouterr().err
    answered(least.root)


def test_each_way_has_its_share_of_the_time(least, monkeypatch):
    """Of 1000 s the first has 600, the second those up to 850; one without time is not tried."""
    clock, given = [0.0], []

    def attempt(command, way, seconds):
        given.append((way.name, round(seconds)))
        clock[0] += 700 if way.name == "whole" else 149
        return Exit.FAULT

    monkeypatch.setattr(supervisor.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(supervisor, "_attempt", attempt)
    assert supervise(lambda way: [], least, 1000) == Exit.OK
    assert given == [("whole", 600), ("frugal", 150), ("plain", 151)]
    clock[0], given[:] = 0.0, []
    assert supervise(lambda way: [], least, 820) == Exit.OK  # 697 s to the second's end: gone
    assert given == [("whole", 492), ("plain", 120)]


def test_a_frugal_attempt_has_one_thread(least, capfd):
    code = "import os; print(os.environ.get('OMP_NUM_THREADS')); raise SystemExit(1)"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "7")
        supervise(lambda way: python(code), least, 60)
    assert capfd.readouterr().out.split() == ["7", "1", "1"]


def test_an_attempt_that_takes_too_long_is_ended(least, capfd):
    """And what it was writing goes with it."""
    half = least.root / f".part-{MACHINE}-PID-0.rfs.json"
    code = f"import os, time; p = {str(half)!r}.replace('PID', str(os.getpid()))\n"
    code += "open(p, 'w').write('0.'); time.sleep(60)"
    assert supervise(lambda way: python(code), least, 6) == Exit.OK
    assert "took longer than" in capfd.readouterr().err
    answered(least.root)


def test_told_to_stop_there_is_an_answer(write_case, tmp_path, tiny_bundle):
    """The platform's SIGTERM in the middle of the networks' work: exit code 0."""
    command = [sys.executable, str(ROOT / "process.py"), "--input", str(write_case())]
    command += ["--output", str(tmp_path / "out"), "--weights", str(tiny_bundle)]
    command += ["--interface", "2026", "--on-error", "answer"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout and "load the weights" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and "told to stop" in said
    answered(tmp_path / "out")


def test_with_too_little_memory_for_any_network(write_case, tmp_path, tiny_bundle):
    command = [sys.executable, str(ROOT / "process.py"), "--input", str(write_case())]
    command += ["--output", str(tmp_path / "out"), "--weights", str(tiny_bundle)]
    command += ["--interface", "2026", "--on-error", "answer"]
    script = f"ulimit -v 500000; {shlex.join(command)}"
    given = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(["bash", "-c", script], env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "out of memory" in done.stderr and "the least answer stands" in done.stderr
    assert Grid.of(answered(tmp_path / "out")[0]).same_as(Grid.of(tiny_ct()), 1e-6)


def test_a_folder_that_cannot_be_written_is_the_one_thing_that_is_not_answered(
    write_case, tmp_path, tiny_bundle, capfd
):
    (tmp_path / "output").write_text("a file")
    words = ["--input", str(write_case()), "--output", str(tmp_path / "output")]
    assert container.main([*words, "--on-error", "answer"]) == Exit.REFUSED
    assert "cannot be written" in capfd.readouterr().err


def test_time_is_left_for_the_platform():
    for interface in INTERFACES.values():
        for task, limit in interface.limits_s.items():
            assert interface.budget_s(task) <= 0.8 * limit
    assert INTERFACES["2026"].budget_s("both") == 1200
    assert [way.until for way in supervisor.WAYS] == sorted(way.until for way in supervisor.WAYS)
    assert supervisor.WAYS[-1].until == 1.0
