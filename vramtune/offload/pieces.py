"""Device memory of weight groups, in pieces that several of them share."""

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch

from vramtune.layout import asked_bytes, piece_ends
from vramtune.offload.binding import BoundComponent, BoundPlacement
from vramtune.offload.groups import Group
from vramtune.offload.memory_limit import segments_of

logger = logging.getLogger(__name__)


def new_piece(num_bytes: int, device: torch.device) -> torch.Tensor:
    """So many bytes of device memory; of PyTorch's CUDA allocator in whole segments, as they are planned."""
    asked = asked_bytes(num_bytes) if device.type == "cuda" else num_bytes
    with torch.inference_mode(False):
        return torch.empty(asked, dtype=torch.uint8, device=device)[:num_bytes]


def flats(groups: list[Group], device: torch.device) -> list[tuple[Group, torch.Tensor]]:
    """Flat memory for each of these groups, in one piece."""
    sizes = [group.num_bytes for group in groups]
    return list(zip(groups, torch.split(new_piece(sum(sizes), device), sizes), strict=True))


def make_arenas(sizes: Sequence[int], device: torch.device) -> None:
    """Leave PyTorch's allocator free segments of so many bytes, from which it takes what is asked for next.

    Where the device has less, there are none: activations then take segments of their own, and what those lack the weights
    give up (`retry.py`), not all that an arena would have.
    """
    try:
        held = [new_piece(num_bytes, device) for num_bytes in sizes]  # all are there before the first one goes
        held.clear()
    except torch.OutOfMemoryError:
        logger.debug("no arenas of %s bytes: out of memory", sizes)


@contextmanager
def gaps_filled(device: torch.device) -> Iterator[None]:
    """While entered, nothing new comes to lie beside what lives in a segment of PyTorch's CUDA allocator already.

    A piece that stays would keep all of the segment from the device: one that held activations is hundreds of MiB.
    """
    torch.accelerator.empty_cache()
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    blocks = (
        block
        for segment in segments_of(device)
        if segment["segment_type"] == "large" and segment["stream"] == stream
        for block in segment["blocks"]
    )
    sizes = [block["size"] for block in blocks if block["state"] == "inactive"]
    gaps = [torch.empty(size, dtype=torch.uint8, device=device) for size in sizes]  # each finds the gap of its size
    try:
        yield
    finally:
        gaps.clear()


def pieces(keeper: BoundPlacement | BoundComponent, groups: Collection[Group]) -> Iterator[list[Group]]:
    """Those of a keeper's groups, in runs that share a piece of memory; a component itself keeps its root and what the
    plan does not know."""
    if isinstance(keeper, BoundComponent):
        yield from ([group] for group in (keeper.root, keeper.unplanned) if group in groups)
        return
    sizes = [group.num_bytes for group in keeper.groups]
    ends = piece_ends(sizes, keeper.kept, is_root_apart=bool(keeper.planned.methods))
    for start, stop in pairwise(sorted({0, *ends, len(sizes)})):
        if sharing := [group for group in keeper.groups[start:stop] if group in groups]:
            yield sharing
