"""Every command ends with a code that says how, and one line that says why."""

import pytest

from hmvnet.case import CaseError
from hmvnet.exits import Exit, RefusedError, UnfinishedError, ending


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
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "error: out of memory"),
        (RuntimeError("Failed to allocate memory for image."), 1, "error: out of memory"),
        (RuntimeError("std::bad_alloc"), 1, "error: out of memory"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (ValueError("ours"), 1, "error: ValueError: ours"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
    ],
)
def test_a_failure_ends_in_one_line_and_its_code(error, code, said, capfd):
    assert ending(raising(error)) == code
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert said in last


def test_only_faults_of_ours_show_a_traceback(capfd):
    ending(raising(RefusedError("no")))
    assert "Traceback" not in capfd.readouterr().err
    ending(raising(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")))
    assert "Traceback" not in capfd.readouterr().err
    ending(raising(ZeroDivisionError()))
    assert "Traceback" in capfd.readouterr().err


def test_what_counts_as_refused_can_be_widened(capfd):
    assert ending(raising(ValueError("setting")), (ValueError,)) == Exit.REFUSED
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(("given", "code"), [(None, 0), (Exit.INCOMPLETE, 3), (0, 0)])
def test_the_works_own_code_is_passed_on(given, code):
    assert ending(lambda: given) == code
