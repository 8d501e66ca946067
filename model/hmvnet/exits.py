"""How a command ends: its exit code, and one line on what went wrong.

What surrounds a command must not cost its result: who listens, and what the machine's environment
says to the packages that are loaded later.
"""

from __future__ import annotations

import errno
import getpass
import io
import math
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, TextIO, cast

# How torch, CUDA's libraries, oneDNN, ITK, ONNX Runtime and the loader of libraries say it.
NO_MEMORY = re.compile(
    "allocate memory|out of memory|not enough memory|alloc_failed|bad_alloc"
    "|could not create a primitive|map segment",
    re.IGNORECASE,
)
LEAST_BYTES = 192 << 20  # below, C++ ends the process with std::bad_alloc and no line of ours
# Packages that read these as they load fail on what is no whole number.
THREAD_COUNTS = ("OMP_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS")


# What a path that was given is not.
_EXPECTED = {
    FileExistsError: ", expected a folder",
    NotADirectoryError: ", expected a folder",
    IsADirectoryError: ", expected a file",
}


class Exit(IntEnum):
    """Exit codes of every command."""

    OK = 0  # everything asked for is there
    FAULT = 1  # a fault of this program, or of the machine
    REFUSED = 2  # the input or the settings
    INCOMPLETE = 3  # mask and risk are whole, something optional is not there
    REVIEW = 4  # a verdict of review, under --strict
    UNFINISHED = 75  # EX_TEMPFAIL: time was up, the same command goes on
    INTERRUPTED = 130  # Ctrl-C
    TERMINATED = 143  # SIGTERM


class RefusedError(ValueError):
    """What was given cannot be used. The message is one line, without patient data."""


def shown(text: object, most: int = 60) -> str:
    """A text of somebody's file, for a message: one line that a terminal can show, not all of it.

    Args:
        most: characters of it.
    """
    return one_line(str(text)[:most])


class UnfinishedError(RuntimeError):
    """Told to stop early; the same command goes on where this one stopped."""


def ending(
    work: Callable[[], int | None], refusals: tuple[type[Exception], ...] = (RefusedError,)
) -> int:
    """Do the work and give the exit code; a failure ends in one clear line on standard error.

    Args:
        work: gives an exit code, or None for ``Exit.OK``.
        refusals: exceptions that speak of the input or the settings. Any other is a fault of ours:
            its traceback comes before the line.
    """
    with _listened():
        if threading.current_thread() is threading.main_thread():
            _asked_to_leave.clear()
            signal.signal(signal.SIGTERM, _terminate)
        try:
            _ready_environment()
            return work() or Exit.OK
        except UnfinishedError as unfinished:
            return _say(str(unfinished), Exit.UNFINISHED)
        except refusals as error:
            return _say(f"error: {error}", Exit.REFUSED)
        except KeyboardInterrupt:
            return _say("error: interrupted", Exit.INTERRUPTED)
        except tuple(_EXPECTED) as error:
            return _say(f"error: {fault(error)}", Exit.REFUSED)
        except Exception as error:
            if not isinstance(error, OSError) and not is_out_of_memory(error):
                traceback.print_exc()
            return _say(f"error: {fault(error)}", Exit.FAULT)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was short, the machine's or the GPU's, whichever package says so."""
    if isinstance(error, OSError) and error.errno:  # its words may be a file's name
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or bool(NO_MEMORY.search(str(error)))


def fault(error: Exception) -> str:
    """What went wrong, for a person."""
    if is_out_of_memory(error):
        return "out of memory: this needs more than the machine allows"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        expected = _EXPECTED.get(type(error), "")
        if isinstance(error, FileExistsError) and not os.path.isfile(error.filename or ""):
            expected = ""  # a folder is there already
        return f"{where}{error.strerror or error}{expected}"
    return f"{type(error).__name__}: {error}"


def note(text: str) -> None:
    """One line on standard error that a person should know, and that ends nothing."""
    print(f"note: {' '.join(text.split())}", file=sys.stderr, flush=True)


class _Listened:
    """A text stream that goes quiet where who listens has gone, or the disk under a log is full."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
        if isinstance(self._stream, io.TextIOWrapper):  # characters that it cannot hold
            self._stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._hush()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._hush()

    def _hush(self) -> None:
        # What is left in its buffer goes the same way: Python flushes it once more at the end.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def _listened() -> Iterator[None]:
    """Standard output and error as :class:`_Listened`."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # else the next file that is opened would get what libraries print
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Listened(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def memory_limits() -> tuple[float, float]:
    """Bytes that the operating system lets this process have, as far as it says: of addresses, and
    of memory of its own, which mapped files are not."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return math.inf, math.inf
    addresses, own = (
        math.inf if soft == resource.RLIM_INFINITY else soft
        for soft, _ in map(resource.getrlimit, (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    )
    return addresses, own


def _ready_environment() -> None:
    """What packages stumble over when they are loaded, mended or refused before they are.

    Raises:
        RefusedError: there is no working directory.
        MemoryError: the process may have so little that libraries abort as they are loaded.
    """
    if min(memory_limits()) < LEAST_BYTES:
        raise MemoryError
    try:
        os.getcwd()
    except OSError as error:  # the CPU libraries end the process
        raise RefusedError(
            f"working directory: {error.strerror}, expected one that is there: cd to another"
        ) from error
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):  # any user may run a container, MONAI wants a name
        os.environ["USER"] = "nobody"
    for name in THREAD_COUNTS:
        value = os.environ.get(name)
        if value is not None and not re.fullmatch("0*[1-9][0-9]*", value.strip()):
            note(f"{name} is {value!r}, expected a whole number above 0: not used")
            del os.environ[name]


_asked_to_leave = threading.Event()


def _terminate(signum: int, frame: object) -> None:
    # The platform's SIGKILL comes 5 s later; leaving by an exception removes half-written files.
    _asked_to_leave.set()
    raise SystemExit(Exit.TERMINATED)


def leave_where_asked() -> None:
    """End now where SIGTERM came and its exception was lost.

    Libraries in C that call back into Python drop it, and fail with an error of their own then.

    Raises:
        SystemExit: SIGTERM came.
    """
    if _asked_to_leave.is_set():
        raise SystemExit(Exit.TERMINATED)


def _say(message: str, code: Exit) -> Exit:
    sys.stdout.flush()
    print(one_line(message), file=sys.stderr, flush=True)
    return code


def one_line(text: str) -> str:
    """Text as one line of a log, whatever names are in it: what cannot be printed is escaped.

    A file's name may hold line ends and a terminal's commands.
    """
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)


def end_with_parent(then: Callable[[], object] = lambda: None) -> None:
    """Let this process, one that multiprocessing started, end with the one that started it.

    A parent that is killed can't end it, and it would wait forever for work.

    Args:
        then: what is left to do.
    """

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            then()
            os._exit(Exit.TERMINATED)

    threading.Thread(target=watch, daemon=True).start()
