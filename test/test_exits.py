"""Every command ends with a code that says how, and one line that says why."""

import getpass
import os
import signal
import subprocess
import sys
import time

import pytest

from hmvnet.case import CaseError
from hmvnet.exits import Exit, RefusedError, UnfinishedError, ending, shown
from hmvnet.writing.folder import write_optional


def raising(error: BaseException):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (CaseError("a.mha: image file is\nempty"), 2, "error: a.mha: image file is empty"),
        (RefusedError("no"), 2, "error: no"),
        (UnfinishedError("goes on"), 75, "goes on"),
        (MemoryError(), 1, "error: out of memory"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (ValueError("ours"), 1, "error: ValueError: ours"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (FileExistsError(17, "File exists", __file__), 2, "File exists, expected a folder"),
        (FileExistsError(17, "File exists", os.curdir), 2, "error: .: File exists"),
        (NotADirectoryError(20, "Not a directory", "a/b"), 2, "a/b: Not a directory, expected a"),
        (IsADirectoryError(21, "Is a directory", "x.csv"), 2, "Is a directory, expected a file"),
    ],
)
def test_a_failure_ends_in_one_line_and_its_code(error, code, said, capfd):
    assert ending(raising(error)) == code
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert said in last


def test_only_faults_of_ours_show_a_traceback(capfd):
    ending(raising(RefusedError("no")))
    assert "Traceback" not in capfd.readouterr().err
    ending(raising(ZeroDivisionError()))
    assert "Traceback" in capfd.readouterr().err


def test_what_counts_as_refused_can_be_widened(capfd):
    assert ending(raising(ValueError("setting")), (ValueError,)) == Exit.REFUSED
    assert "Traceback" not in capfd.readouterr().err


def test_a_name_cannot_break_a_line_or_command_a_terminal(capfd):
    ending(raising(RefusedError("a\nb\r\x1b[2J\u202ec\udcff\0: κ is no image")))
    said = capfd.readouterr().err
    assert said == "error: a b \\x1b[2J\\u202ec\\udcff\\x00: κ is no image\n"


def test_a_sigterm_that_a_library_drops_still_ends_the_command(tmp_path):
    def writer():  # as FreeType's does, whose calls back into Python drop what they raise
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except SystemExit:
            raise RuntimeError("cannot open the font") from None

    with pytest.raises(SystemExit) as ended:
        ending(lambda: write_optional({tmp_path / "curves.png": writer}) and None)
    assert ended.value.code == Exit.TERMINATED
    assert ending(lambda: len(write_optional({tmp_path / "a.png": raising(OSError())})) + 1) == 2


@pytest.mark.parametrize(("given", "code"), [(None, 0), (Exit.INCOMPLETE, 3), (0, 0)])
def test_the_works_own_code_is_passed_on(given, code):
    assert ending(lambda: given) == code


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("ITK ERROR: Image: Failed to allocate memory for image."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_memory_that_is_short_is_one_line_whoever_says_so(error, capfd):
    assert ending(raising(error)) == Exit.FAULT
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: out of memory")


def test_a_file_whose_name_speaks_of_memory_is_no_short_memory(capfd):
    assert ending(raising(OSError(28, "No space left on device", "out of memory.txt"))) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "error: out of memory.txt: No space left on device"


# Talks, writes its file, and lets a library talk past Python; then it is refused or not.
TALK = """
import contextlib, os, sys
from hmvnet.exits import RefusedError, ending
def work():
    with open(sys.argv[1], "w") as file:
        for stream in (sys.stdout, sys.stderr):
            for i in range(2000):
                print("ü", i, file=stream, flush=True)
        for descriptor in (1, 2):
            with contextlib.suppress(BrokenPipeError):  # a listener that left only now
                os.write(descriptor, b"from a library")
        file.write("whole")
    if len(sys.argv) > 2:
        raise RefusedError("ü")
sys.exit(ending(work))
"""


@pytest.mark.parametrize(
    "listener",
    [
        ">&-",
        "2>&-",
        ">&- 2>&-",
        "<&- >&- 2>&-",
        "| head -0",
        "| head -1",
        "2>&1 | head -1",
        ">/dev/full",
        "2>/dev/full",
        ">/dev/full 2>&1",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii:strict"])
def test_who_listens_changes_neither_code_nor_files(tmp_path, listener, encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    for words, code in (("", Exit.OK), ("refuse", Exit.REFUSED)):
        path = tmp_path / f"file{words}"
        script = f'"$@" {words} {listener}; exit ${{PIPESTATUS[0]}}'
        command = ["bash", "-c", script, "", sys.executable, "-c", TALK, str(path)]
        done = subprocess.run(command, env=environment, capture_output=True)
        assert done.returncode == code, done.stderr
        assert path.read_text() == "whole"


def test_a_thread_count_that_is_none_is_said_and_not_used(monkeypatch, capfd):
    """numexpr raises on it as pandas loads it, and libgomp speaks of it."""
    for value in ("abc", "0", "", "-1", "4,2"):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert ending(lambda: int("OMP_NUM_THREADS" in os.environ)) == Exit.OK
        assert f"OMP_NUM_THREADS is '{value}', expected a whole" in capfd.readouterr().err
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert ending(lambda: int(os.environ["OMP_NUM_THREADS"] != "3")) == Exit.OK
    assert not capfd.readouterr().err


def test_a_user_without_a_name_may_run_it(monkeypatch):
    """``docker run --user 54321``: MONAI asks for the name as it is loaded."""
    pwd = pytest.importorskip("pwd")
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")
    assert ending(lambda: int(not getpass.getuser())) == Exit.OK


def test_a_working_directory_that_is_gone_is_refused(monkeypatch, capfd):
    monkeypatch.setattr(os, "getcwd", raising(FileNotFoundError(2, "No such file or directory")))
    assert ending(lambda: 0) == Exit.REFUSED
    assert capfd.readouterr().err.startswith("error: working directory: No such file")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Größe", "Größe"),
        ("a\nb\tc", "a b c"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\ud800", r"\ud800"),
        (7, "7"),
    ],
)
def test_a_text_of_somebodys_file_is_shown_in_one_line(text, told):
    assert shown(text) == told and shown("x" * 100, 9) == "x" * 9


@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_a_limit_that_no_library_fits_into_is_said_before_they_are_loaded(kind):
    """Of 100 MB of data C++ made an abort without a line of ours."""
    code = f"""
import resource, sys
resource.setrlimit(resource.{kind}, (100 << 20, resource.RLIM_INFINITY))
from hmvnet.exits import ending
sys.exit(ending(lambda: __import__("torch") and 0))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: out of memory")
