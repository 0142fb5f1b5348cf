"""The budget, held by PyTorch's allocator for the length of a call."""

import logging
from collections.abc import Collection, Iterable, Mapping
from types import TracebackType
from typing import Any

import torch

from vramtune.layout import SMALL_SEGMENT_BYTES, round_up, workspace_block_bytes

Segment = dict[str, Any]
"""As `torch.cuda.memory_snapshot` tells of it."""

logger = logging.getLogger(__name__)


def others_bytes(device: torch.device, *, pieces: Mapping[int, int], left_bytes: int, workspace_bytes: int) -> int:
    """What PyTorch's allocator holds between calls for others of this process than a pipeline.

    That is all but the pieces of its resident weights (bytes by address), with what the segments that they lie in keep
    from others, what the last call left with the pipeline (`left_bytes`: a scheduler's timesteps), and the libraries'
    workspaces, of which there are as many as threads and streams.
    """
    torch.accelerator.empty_cache()
    segments = segments_of(device)
    ours_bytes = sum(pieces.values()) + sum(_free_bytes(segment) for segment in segments if _has(segment, pieces))
    ours_bytes += max(_num_workspaces(segments, workspace_bytes), 1) * workspace_bytes
    ours_bytes += round_up(left_bytes, SMALL_SEGMENT_BYTES) if device.type == "cuda" else left_bytes
    return max(torch.accelerator.memory_reserved(device) - ours_bytes, 0)


def let_go_of_workspaces(device: torch.device, workspace_bytes: int) -> bool:
    """Free cuBLAS's workspaces but that of this thread and its stream; False if there are no others.

    cuBLAS keeps one for each thread and each stream that ever multiplied matrices; a plan has room for one.
    """
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):  # of another one that is the current one, the context would come too
        try:
            torch.cuda.current_blas_handle()  # type: ignore[no-untyped-call]  # this thread's own comes with it
            num_least = 2
        except torch.OutOfMemoryError:
            num_least = 1
        num_workspaces = _num_workspaces(segments_of(device), workspace_bytes)
        if num_workspaces < num_least:
            return False
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.current_blas_handle()  # type: ignore[no-untyped-call]
    logger.debug("%d workspaces of other streams and threads were let go of", num_workspaces + 1 - num_least)
    return True


def segments_of(device: torch.device) -> list[Segment]:
    """What PyTorch's CUDA allocator has taken of a device; nothing where another one is at work, which does not tell."""
    if device.type != "cuda" or torch.cuda.get_allocator_backend() != "native":
        return []
    segments: list[Segment] = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    return [segment for segment in segments if segment["device"] == device.index]


def _has(segment: Segment, addresses: Collection[int]) -> bool:
    return any(block["address"] in addresses for block in segment["blocks"])


def _free_bytes(segment: Segment) -> int:
    """What nothing lies in, and nothing but the allocator can use: a piece may lie where activations were before."""
    return sum(int(block["size"]) for block in segment["blocks"] if block["state"] != "active_allocated")


def _num_workspaces(segments: Iterable[Segment], workspace_bytes: int) -> int:
    """Number of cuBLAS's workspaces among them."""
    size = workspace_block_bytes(workspace_bytes)
    blocks = (block for segment in segments for block in segment["blocks"])
    return sum(block["size"] == size and block["state"] == "active_allocated" for block in blocks)


class MemoryLimit:
    """Lets PyTorch's allocator have no more than so many bytes of a device for us, or than it may have already.

    At that limit it frees what it only caches, then it is out of memory: so what no plan foresees (a larger call,
    workspaces) takes the room of weights, and never more than the budget. Devices whose PyTorch backend has no such
    limit are not limited.
    """

    def __init__(self, device: torch.device, num_bytes: int) -> None:
        self._device, self.num_bytes = device, num_bytes
        self._module = torch.get_device_module(device)
        self.others_bytes = 0
        """What the allocator holds for others of this process, which does not count."""
        self._before: float | None = None
        """Fraction of the device that the process might have before, while it may have less."""

    def __enter__(self) -> None:
        if self._before is None and hasattr(self._module, "get_per_process_memory_fraction"):
            # `cudaMallocAsync` without a limit tells a fraction far above 1, and takes none above 1 back
            before = min(self._module.get_per_process_memory_fraction(self._device), 1.0)
            _, total_bytes = torch.accelerator.get_memory_info(self._device)
            fraction = min(before, (max(self.num_bytes, 0) + self.others_bytes) / total_bytes)
            self._before = before
            self._module.set_per_process_memory_fraction(fraction, self._device)
            logger.debug("memory limit of %s set to %.4f of it (was %.4f)", self._device, fraction, before)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Put the limit back as it was, if it is set."""
        if self._before is not None:
            self._module.set_per_process_memory_fraction(self._before, self._device)
            logger.debug("memory limit of %s put back to %.4f of it", self._device, self._before)
            self._before = None
