"""The host's memory as this process may have it: what there is, what is free, what may be page-locked.

In a container or a scheduler's job the limit of the control group counts, not the machine's memory.
"""

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from vramtune.units import GIB

PROC = Path("/proc")
CONTROL_GROUPS = Path("/sys/fs/cgroup")
RESERVE_BYTES = GIB
"""What is free and is not planned for: outputs, libraries, other programs."""
LOCKED_FRACTION = 0.5 if sys.platform == "win32" else 0.8
"""Share of the memory that may be page-locked here: it cannot be swapped out, and the system needs some too. Windows' driver
model locks half at the most."""


def total_bytes() -> int:
    """What this process may have at the most."""
    return int(min((psutil.virtual_memory().total, *control_group_limits())))


def available_bytes() -> int:
    """What could be taken now without swapping, page cache given up included."""
    free = (limit - used for limit, used in _control_groups() if used is not None)
    return int(max(min((psutil.virtual_memory().available, *free)), 0))


def usable_bytes() -> int:
    """What weights may take of that: all but a reserve."""
    return max(available_bytes() - RESERVE_BYTES, 0)


def lockable_bytes() -> int:
    """What may be page-locked, all together."""
    return int(LOCKED_FRACTION * total_bytes())


def give_back_freed() -> None:
    """Give memory that was freed back to the system; glibc keeps what lies between other things. A few milliseconds."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def locked_limit_bytes() -> int | None:
    """What one process may lock by the system's limits (`ulimit -l`); NVIDIA's driver does not count against it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft


def linux_memory() -> dict[str, int]:
    """Linux's own figures for memory, in bytes; empty on other systems."""
    meminfo = PROC / "meminfo"
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    return {name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}


def control_group_limits() -> Iterator[int]:
    """Memory limits of this process's control group and of the groups around it, in either version of the interface."""
    return (limit for limit, _ in _control_groups())


def _control_groups() -> Iterator[tuple[int, int | None]]:
    """The limit of each group that has one, and what is used of it but for page cache that can be given up."""
    membership = PROC / "self" / "cgroup"
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit_name, usage_name = CONTROL_GROUPS, "memory.max", "memory.current"
        elif controllers == "memory":
            root, limit_name, usage_name = CONTROL_GROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = Path(path)
        for place in (group, *group.parents):
            # in a container the path is the host's, and only the root can be read
            folder = root / place.relative_to("/")
            limit = _text(folder / limit_name)
            if (
                limit not in (None, "max") and int(limit) < sys.maxsize // 2
            ):  # version 1 writes "no limit" as a huge number
                usage = _text(folder / usage_name)
                yield int(limit), None if usage is None else int(usage) - _cache_bytes(folder)


def _cache_bytes(folder: Path) -> int:
    """Page cache of a control group that the system would give up first."""
    lines = (line.split() for line in (_text(folder / "memory.stat") or "").splitlines())
    figures = {words[0]: int(words[1]) for words in lines if len(words) == 2}
    return figures.get("total_inactive_file", figures.get("inactive_file", 0))


def _text(file: Path) -> str | None:
    return file.read_text().strip() if file.exists() else None
