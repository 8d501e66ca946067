"""A few of the faults of ``make faults``."""

import subprocess
import sys

import pytest
from conftest import ROOT

pytest.importorskip("sksurv", reason="the survival part is fitted with the extra 'baselines'")


def faults(*words: str) -> dict[str, list[int]]:
    """The table's rows: runs, succeeded, ended cleanly, wrong."""
    command = [sys.executable, str(ROOT / "test" / "faults.py"), "--memory", "--commands", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| ")]
    return {kind.strip(): [int(count) for count in counts] for kind, *counts in rows[1:]}


def test_a_few_faults_leave_nothing_wrong():
    found = faults("process.py", "--kills", "4", "--disk", "2", "--minutes", "0")
    kinds = ["SIGKILL", "SIGTERM", "files cut", "no more files"]
    assert list(found) == [f"process.py, {kind}" for kind in kinds]
    assert all(row[0] == row[1] + row[2] > 0 == row[3] for row in found.values())


@pytest.mark.slow
def test_more_faults_and_several_at_once_leave_nothing_wrong():
    names = ("predict", "predict --force", "segmentation train")
    found = faults(*names, "--kills", "12", "--disk", "3", "--minutes", "0.2")
    assert len(found) == 4 * len(names) + 1
    assert all(row[0] == row[1] + row[2] > 0 == row[3] for row in found.values())
