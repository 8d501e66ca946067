"""A folder in use is one command's; what is kept is as it was written, or not there."""

import signal
import subprocess
import sys

import numpy as np
import pytest

from hmvnet.exits import RefusedError
from hmvnet.state import (
    RANKS,
    claimed,
    claiming_run,
    read_arrays,
    read_state,
    write_arrays,
    write_state,
)


def test_arrays_come_back(tmp_path):
    write_arrays(tmp_path / "b.npz", x=np.arange(3))
    assert {k: v.tolist() for k, v in read_arrays(tmp_path / "b.npz").items()} == {"x": [0, 1, 2]}
    assert [path.name for path in tmp_path.iterdir()] == ["b.npz"]


@pytest.mark.parametrize("kept", [0, 1, 40, -1])
def test_damaged_arrays_and_states_are_not_there(tmp_path, kept):
    arrays, state = tmp_path / "b.npz", tmp_path / "c.json"
    assert read_arrays(arrays) is None and read_state(state, "k") is None
    write_arrays(arrays, x=np.arange(99), names=np.array(["a"]))
    write_state(state, "k", {"figure": 0.5, "rows": [{"a": 1, "b": None}]})
    assert read_state(state, "k") == {"figure": 0.5, "rows": [{"a": 1, "b": None}]}
    assert read_state(state, "other") is None
    for path in (arrays, state):
        path.write_bytes(path.read_bytes()[:kept])
    assert read_arrays(arrays) is None and read_state(state, "k") is None


def test_another_bit_is_seen(tmp_path):
    path = tmp_path / "c.json"
    write_state(path, "k", {"figure": 0.5})
    path.write_text(path.read_text().replace("0.5", "0.7"))
    assert read_state(path, "k") is None
    path = tmp_path / "b.npz"
    write_arrays(path, x=np.arange(9))
    with np.load(path) as stored:
        np.savez(path, x=stored["x"] + 1, content=stored["content"])
    assert read_arrays(path) is None


CLAIM_AND_WAIT = """
import sys, time
from pathlib import Path
from hmvnet.state import claimed
with claimed(Path(sys.argv[1])):
    print("claimed", flush=True)
    time.sleep(600)
"""


def test_a_folder_in_use_is_refused_until_its_process_ends_however_that_ends(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", CLAIM_AND_WAIT, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "claimed\n"
        with pytest.raises(RefusedError, match=f"^{folder}: another command"), claimed(folder):
            pass
        other.send_signal(signal.SIGKILL)
    with claimed(folder):
        pass
    with claimed(folder):  # and released by who ends well
        pass


def test_a_folder_in_which_nothing_came_about_does_not_stay(tmp_path):
    with pytest.raises(RuntimeError), claimed(tmp_path / "refused"):
        raise RuntimeError
    with claimed(tmp_path / "done"):
        (tmp_path / "done" / "a.txt").write_text("state")
    (tmp_path / "there").mkdir()
    with claimed(tmp_path / "there"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["done", "there"]


@pytest.mark.parametrize("variable", RANKS)
def test_processes_of_one_training_do_not_refuse_each_other(tmp_path, monkeypatch, variable):
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    with claimed(tmp_path):
        monkeypatch.setenv(variable, "1")
        with claimed(tmp_path):
            pass
        monkeypatch.setenv(variable, "0")
        with pytest.raises(RefusedError), claimed(tmp_path):
            pass


def test_a_function_claims_the_folder_that_it_is_given_as_run(tmp_path):
    @claiming_run
    def work(number, run, other=0):
        with pytest.raises(RefusedError, match="another --run"), claimed(run):
            pass
        return number + other

    assert work(1, tmp_path) == 1 and work(1, other=2, run=tmp_path) == 3
