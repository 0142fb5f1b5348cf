"""Page-locked host memory, from which a device copies without the host's help."""

import contextlib
import math
import mmap
import warnings
import weakref
from typing import Any

import psutil
import torch

LOCKED_FRACTION = 0.8
"""Of the host's memory that may be locked here: it cannot be swapped out, and the system needs some too."""

_locked: "weakref.WeakSet[torch.UntypedStorage]" = weakref.WeakSet()


def pinned_buffer(num_bytes: int, device: torch.device) -> torch.Tensor:
    """A flat page-locked buffer of exactly that size.

    Where no more may be locked, or the system refuses, it is an ordinary one: slower to copy from, and it says so.
    """
    if num_bytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    try:
        return _locked_buffer(num_bytes, device)
    except RuntimeError as error:
        # no figures in it, or it would be shown for every buffer
        warnings.warn(
            f"No more host memory is page-locked ({error}); copies from the rest are slower.", stacklevel=2
        )
        return torch.empty(num_bytes, dtype=torch.uint8)


def _locked_buffer(num_bytes: int, device: torch.device) -> torch.Tensor:
    limit = LOCKED_FRACTION * psutil.virtual_memory().total
    if num_bytes + sum(storage.nbytes() for storage in _locked) > limit:
        raise RuntimeError(f"{LOCKED_FRACTION:.0%} of it is")
    if device.type == "cuda":
        flat = _registered_buffer(num_bytes, device)
    else:
        flat = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
    _locked.add(flat.untyped_storage())
    return flat


def _registered_buffer(num_bytes: int, device: torch.device) -> torch.Tensor:
    # PyTorch's own pinned allocator rounds up to a power of two, for FLUX.1 22 GiB to 35. Whole pages, because
    # two registrations must not share one.
    page = mmap.PAGESIZE
    size = math.ceil(num_bytes / page) * page
    memory = torch.empty(size + page, dtype=torch.uint8)
    start = -memory.data_ptr() % page
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = memory.data_ptr() + start
    with torch.cuda.device(device):  # on another one the call would make a context, of some 300 MiB
        status = runtime.cudaHostRegister(address, size, 0)
    if int(status) != 0:
        _forget_failure(device)
        raise RuntimeError(f"cudaHostRegister: {runtime.cudaGetErrorString(status)}")
    weakref.finalize(memory.untyped_storage(), runtime.cudaHostUnregister, address)
    return memory[start : start + num_bytes]


def _forget_failure(device: torch.device) -> None:
    """Let a kernel be blamed for the runtime's last error, which CUDA keeps until it is asked, and nobody else."""
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device=device).add_(1)
