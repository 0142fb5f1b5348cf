"""One gigabyte and one formatter: GiB (2**30 bytes), as card labels, nvidia-smi and PyTorch's messages count."""

import math

from vramtune.errors import UsageError

GIB = 2**30
MIB = 2**20
MOST_GIB = 2**20
"""A budget of more is a slip: no machine has a PiB on a GPU."""


def budget_bytes(gib: object, *, name: str = "vram_gb", of: str = "GPU memory") -> int:
    """Bytes of a budget given in GiB at the door; anything but a finite positive number is a `UsageError`."""
    if isinstance(gib, bool) or not isinstance(gib, int | float):
        raise UsageError(f"{name} must be a number of GiB, such as 8 or 11.5; got {gib!r}.")
    if not 0 < gib < math.inf:
        raise UsageError(f"{name} must be a finite number above 0 (GiB of {of}); got {gib!r}.")
    if not 1 / GIB <= gib <= MOST_GIB:
        raise UsageError(f"{name} is a number of GiB of {of}: at least a byte, at most {MOST_GIB:,}.")
    return round(gib * GIB)


def host_bytes(gib: object, *, name: str) -> int | None:
    """Bytes of host memory given in GiB at the door; None where it is left out."""
    return None if gib is None else budget_bytes(gib, name=name, of="host memory")


def format_bytes(num_bytes: int) -> str:
    """Bytes for people: `"7.81 GiB"`, `"34 MiB"`, `"512 B"`."""
    if num_bytes >= GIB / 10:
        return f"{num_bytes / GIB:.2f} GiB"
    if num_bytes >= MIB:
        return f"{num_bytes / MIB:.0f} MiB"
    if num_bytes >= 1024:
        return f"{num_bytes / 1024:.0f} KiB"
    return f"{num_bytes} B"


def format_rate(bytes_per_second: float) -> str:
    """Bytes a second for people, as data sheets count them: `"26.3 GB/s"`."""
    return f"{bytes_per_second / 1e9:.3g} GB/s"


def format_seconds(seconds: float) -> str:
    """Seconds for people: `"1 h 29 min"`, `"2 min 05 s"`, `"12.3 s"`, `"45 ms"`, `"80 µs"`, `"0 s"`.

    Each unit begins where the one below it would be rounded up to a whole one.
    """
    if seconds >= 99.95:
        minutes, rest = divmod(round(seconds), 60)
        if minutes >= 60:
            return "{} h {:02d} min".format(*divmod(round(seconds / 60), 60))
        return f"{minutes} min {rest:02d} s"
    if seconds >= 0.9995:
        return f"{seconds:.1f} s" if seconds >= 9.995 else f"{seconds:.2f} s"
    if seconds >= 0.9995e-3:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds * 1e6:.0f} µs" if seconds >= 0.5e-6 else "0 s"
