"""Device memory of weight groups, in pieces that several of them share."""

from collections.abc import Iterable, Iterator
from itertools import pairwise

import torch

from vramtune.offload.binding import BoundComponent, BoundPlacement
from vramtune.offload.groups import Group
from vramtune.units import MIB

LEAST_PIECE_BYTES = 64 * MIB
"""Groups that stay on the device share pieces of at least so much, where there are as many.

PyTorch's allocator takes 20 MiB of the driver where less than 10 are asked for, and otherwise a multiple of 2 MiB.
"""


def pieces(groups: Iterable[Group]) -> Iterator[list[Group]]:
    """Groups that stay on the device, in runs that share a piece of its memory."""
    sharing: list[Group] = []
    for group in groups:
        sharing.append(group)
        if sum(each.num_bytes for each in sharing) >= LEAST_PIECE_BYTES:
            yield sharing
            sharing = []
    if sharing:
        yield sharing


def flats(groups: list[Group], device: torch.device) -> Iterator[tuple[Group, torch.Tensor]]:
    """Flat memory for each of these groups, in one piece."""
    with torch.inference_mode(False):
        flat = torch.empty(sum(group.num_bytes for group in groups), dtype=torch.uint8, device=device)
    start = 0
    for group in groups:
        yield group, flat[start : start + group.num_bytes]
        start += group.num_bytes


def together(keeper: BoundPlacement | BoundComponent, groups: list[Group]) -> Iterator[list[Group]]:
    """Groups that come and go together, so that they can share one piece of memory."""
    if isinstance(keeper, BoundComponent):
        yield from ([group] for group in groups)
        return
    borders = sorted({0, 1, len(keeper.groups), *keeper.kept})
    for start, stop in pairwise(borders):
        if sharing := [group for group in keeper.groups[start:stop] if group in groups]:
            yield sharing
