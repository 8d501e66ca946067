"""How a command ends: its exit code, and one line on what went wrong."""

from __future__ import annotations

import io
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from enum import IntEnum

# In the words of torch (CPU and GPU), ITK and C++ itself.
NO_MEMORY = re.compile("allocate memory|out of memory|not enough memory|bad_alloc", re.IGNORECASE)


class Exit(IntEnum):
    """Exit codes of every command."""

    OK = 0  # everything asked for is there
    FAULT = 1  # a fault of this program, or of the machine
    REFUSED = 2  # the input or the settings
    INCOMPLETE = 3  # mask and risk are whole, something optional is not there
    UNFINISHED = 75  # EX_TEMPFAIL: time was up, the same command goes on
    INTERRUPTED = 130  # Ctrl-C
    TERMINATED = 143  # SIGTERM


class RefusedError(ValueError):
    """What was given cannot be used. The message is one line, without patient data."""


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
    _ready_streams()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        return work() or Exit.OK
    except UnfinishedError as unfinished:
        return _say(str(unfinished), Exit.UNFINISHED)
    except refusals as error:
        return _say(f"error: {error}", Exit.REFUSED)
    except KeyboardInterrupt:
        return _say("error: interrupted", Exit.INTERRUPTED)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"error: {where}{error.strerror or error}", Exit.FAULT)
    except Exception as error:
        if _is_memory(error):
            return _say("error: out of memory: this needs more than the machine allows", Exit.FAULT)
        traceback.print_exc()
        return _say(f"error: {type(error).__name__}: {error}", Exit.FAULT)


def _is_memory(error: Exception) -> bool:
    """Whether memory was short: libraries in C++ have no exception of their own for it."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None
    )


def _ready_streams() -> None:
    """What is said must not cost the work: closed streams and characters they cannot hold."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, io.StringIO())
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _terminate(signum: int, frame: object) -> None:
    # The platform's SIGKILL comes 5 s later; leaving by an exception removes half-written files.
    raise SystemExit(Exit.TERMINATED)


def _say(message: str, code: Exit) -> Exit:
    sys.stdout.flush()
    print(" ".join(message.split()), file=sys.stderr, flush=True)
    return code
