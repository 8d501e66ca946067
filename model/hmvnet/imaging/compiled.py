"""Loops that numba compiles, for the training's patches: inference does without numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled at its first call, and kept on disk where there is a place for it.

    Threads that call it run side by side. A product and its sum may be rounded once.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written
        return numba.njit(**options)(function)
