"""Page-locked host memory, from which a device copies without the host's help."""

import contextlib
import math
import mmap
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vramtune.host_memory import LOCKED_FRACTION, lockable_bytes

SILENT_SECONDS = 1.0
"""Page-locking shows how far it is from then on; 30 GiB take several seconds."""

_locked: "weakref.WeakSet[torch.UntypedStorage]" = weakref.WeakSet()


@contextmanager
def locking_bar(num_bytes: int, *, is_shown: bool) -> Iterator[Callable[[int], object]]:
    """A bar that says how much of so many bytes is page-locked; yields what is told of each part, which does nothing later."""
    from tqdm.auto import tqdm  # which warns in notebooks without widgets

    with tqdm(
        desc="Page-locking",
        total=num_bytes,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        delay=SILENT_SECONDS,
        leave=False,
        disable=not is_shown,
    ) as bar:
        yield bar.update


def pinned_buffer(num_bytes: int, device: torch.device) -> torch.Tensor | None:
    """A flat page-locked buffer of exactly that size.

    Where the limit is reached, or the system refuses, there is none, and a warning says that copies are slower.
    """
    if num_bytes == 0:
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    try:
        return _locked_buffer(num_bytes, device)
    except RuntimeError as error:
        # No sizes in the text, and one place, or Python would show the warning for every buffer.
        warnings.warn(f"{error}; weights in ordinary memory copy more slowly.", stacklevel=1)
        return None


def _locked_buffer(num_bytes: int, device: torch.device) -> torch.Tensor:
    limit = lockable_bytes()
    if num_bytes + sum(storage.nbytes() for storage in _locked) > limit:
        raise RuntimeError(f"Page-locked host memory has reached its limit ({LOCKED_FRACTION:.0%} of RAM)")
    if device.type == "cuda":
        flat = _registered_buffer(num_bytes, device)
    else:
        flat = torch.empty(num_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)
    _locked.add(flat.untyped_storage())
    return flat


def _registered_buffer(num_bytes: int, device: torch.device) -> torch.Tensor:
    # PyTorch's own pinned allocator rounds up to a power of two: FLUX.1's 22 GiB to 35. Whole pages, because two
    # registrations must not share one.
    page = mmap.PAGESIZE
    size = math.ceil(num_bytes / page) * page
    memory = torch.empty(size + page, dtype=torch.uint8, device="cpu")
    start = -memory.data_ptr() % page
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = memory.data_ptr() + start
    with torch.cuda.device(device):  # on another device the call would create a context, of some 300 MiB
        status = runtime.cudaHostRegister(address, size, 0)
    if int(status) != 0:
        _clear_last_error(device)
        reason = runtime.cudaGetErrorString(status)
        raise RuntimeError(f"The system refused to page-lock host memory (cudaHostRegister: {reason})")
    weakref.finalize(memory.untyped_storage(), runtime.cudaHostUnregister, address)
    return memory[start : start + num_bytes]


def _clear_last_error(device: torch.device) -> None:
    """Launch a kernel that takes the runtime's last error, which CUDA keeps until something asks for it."""
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device=device).add_(1)
