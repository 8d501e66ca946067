"""A few of the faults of ``make faults``."""

import subprocess
import sys

import pytest
from conftest import ROOT

pytest.importorskip("sksurv", reason="the survival part is fitted with the extra 'baselines'")


def test_faults_leave_nothing_wrong():
    command = [sys.executable, str(ROOT / "test" / "faults.py"), "--commands", "process.py"]
    few = ["--kills", "6", "--disk", "4", "--minutes", "0.05", "--memory"]
    done = subprocess.run([*command, *few], capture_output=True, text=True)
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert done.returncode == 0, done.stdout + done.stderr
    runs = {kind.strip(): [int(count) for count in counts] for kind, *counts in rows[1:]}
    kinds = ["process.py, SIGKILL", "process.py, SIGTERM", "process.py, files cut"]
    assert list(runs) == [*kinds, "process.py, no more files", "eight at once"]
    for count, succeeded, ended, wrong in runs.values():
        assert count == succeeded + ended > 0 == wrong
