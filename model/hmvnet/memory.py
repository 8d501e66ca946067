"""How much memory this process can still take. Its only home."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

from hmvnet.exits import memory_limits

MOUNTED = Path("/sys/fs/cgroup")
MEMBER = Path("/proc/self/cgroup")
# Of control groups, versions 2 and 1: where they lie, their limit, what of it is in use, and what
# of that is files' content, which the kernel takes back where it has to.
_GROUPS = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def available_memory() -> float:
    """Bytes that this process can still take: the machine's, or what a container or a job leaves.

    The machine's alone, as most libraries see it, is the host's: a container of 8 GiB on a host of
    512 would be ended by the kernel.
    """
    taken = psutil.Process().memory_info()
    addresses, own = memory_limits()
    limited = (addresses - taken.vms, own - getattr(taken, "data", taken.vms))
    return max(0.0, min([psutil.virtual_memory().available, *limited, *_rooms()]))


def _rooms() -> Iterator[float]:
    """What each control group that this process is in has left, up to the topmost."""
    try:
        lines = MEMBER.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in _GROUPS:
            continue
        mount, limit, used, cached = _GROUPS[controllers]
        own = Path(path.lstrip("/"))
        for group in [own, *own.parents]:  # a container sees its own as the topmost
            folder = MOUNTED / mount / group
            try:
                most, taken = (int((folder / name).read_text()) for name in (limit, used))
                stat = dict(
                    row.split() for row in (folder / "memory.stat").read_text().splitlines()
                )
            except (OSError, ValueError):  # no such group from here, or without a limit: "max"
                continue
            yield most - taken + int(stat.get(cached, 0))
