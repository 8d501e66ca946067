"""A job in another process: what it says, how it ends. The jobs here are stand-ins."""

import json
import os
import sys
import time

import pytest

from hmvnet.exits import RefusedError, UnfinishedError
from hmvnet.experiments import nnunet_process as room
from hmvnet.experiments.nnunet_process import Workshop, require_nnunet, run_job

STAND_INS = """
import os, sys
from hmvnet.exits import RefusedError, UnfinishedError
from hmvnet.experiments import nnunet_job as room

def good(say, number):
    print("chatter")
    say(line="begins")
    for done in range(3):
        say(done=done + 1, total=3, note="loss 1")
    return {"number": number, "raw": os.environ["nnUNet_raw"], "stdin": sys.stdin.read()}

def refuses(say):
    raise RefusedError("no such configuration")

def stops(say):
    raise UnfinishedError("stopped after step 3")

def fails(say):
    raise KeyError("what went wrong")

def dies(say):
    os.kill(os.getpid(), 9)

def forks(say):
    import multiprocessing
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return {"sum": pool.apply(sum, ([1, 2],))}

if __name__ == "__main__":
    room.JOBS = {f.__name__: f for f in (good, refuses, stops, fails, dies, forks)}
    sys.exit(room.main(sys.argv[1]))
"""


@pytest.fixture
def shop(tmp_path, monkeypatch):
    (tmp_path / "stand_ins.py").write_text(STAND_INS)
    monkeypatch.setattr(room, "JOB", "stand_ins")
    monkeypatch.setattr(room, "require_nnunet", lambda: None)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Workshop(tmp_path / "shop", "results-3steps")


def test_what_a_job_returns_and_says(shop, capsys):
    said = run_job(shop, "good", {"number": 501}, "a job")
    assert said == {"number": 501, "raw": str(shop.folder / "raw"), "stdin": ""}
    shown = capsys.readouterr()
    assert "begins" in shown.err and "a job: 3/3 (100%), loss 1" in shown.err
    assert "chatter" not in shown.out + shown.err and "chatter" in shop.log.read_text()


@pytest.mark.parametrize(
    ("job", "error", "said"),
    [
        ("refuses", RefusedError, "no such configuration"),
        ("stops", UnfinishedError, "stopped after step 3"),
        ("fails", RuntimeError, r"a job: KeyError: 'what went wrong'; all that it said: .*\.log"),
        ("dies", RuntimeError, r"killed \(signal 9\)"),
    ],
)
def test_how_a_job_ends(shop, job, error, said):
    with pytest.raises(error, match=said):
        run_job(shop, job, {}, "a job")


def test_a_job_may_start_processes(shop):
    """Those close standard input, on which a thread of the job waits."""
    assert run_job(shop, "forks", {}, "a job") == {"sum": 3}


def test_a_job_ends_with_who_ordered_it(shop, tmp_path):
    """Standard input closed is the sign: a parent that is killed can give no other."""
    program = "import sys, time, hmvnet.experiments.nnunet_job as room\n"
    program += "room.JOBS = {'waits': lambda say: time.sleep(600)}\nroom.main('waits')\n"
    (tmp_path / "waits.py").write_text(program)
    import subprocess

    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "waits.py")],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(room.ROOT)},
    )
    process.stdin.write(json.dumps({}).encode() + b"\n")
    process.stdin.close()
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    if alive := process.poll() is None:
        process.kill()
    assert not alive


def test_it_is_said_where_nnunet_is_missing(monkeypatch):
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    with pytest.raises(RefusedError, match=r"pip install '\.\[nnunet\]' in a checkout"):
        require_nnunet()
