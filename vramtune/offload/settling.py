"""Where groups are between calls: those that stay are put on the device, all others on the host."""

from collections.abc import Callable

import torch

from vramtune.host_memory import give_back_freed
from vramtune.offload.binding import BoundComponent
from vramtune.offload.groups import Group
from vramtune.offload.pieces import flats, gaps_filled, pieces
from vramtune.offload.retry import is_out_of_memory
from vramtune.units import MIB

TRIMMED_BYTES = 32 * MIB
"""After so many bytes have moved to page-locked memory, what they took before is given back to the system."""


def take_off(component: BoundComponent, device: torch.device, on_locked: Callable[[int], object]) -> set[Group]:
    """Take the groups of a component from where they do not stay; returns those that are to be put on the device.

    Where one leaves a piece of device memory, the others in it are taken off too, or it would stay allocated. `on_locked`
    is told of the bytes of each group that was page-locked.
    """
    resident, displaced = component.resident_groups, _displaced(component)
    freed_bytes = 0
    for group in displaced:
        if group not in resident or (group.is_settled and group.piece):
            group.settle_on_host(device)
            if not group.is_in_place:
                on_locked(group.num_bytes)
            freed_bytes += group.num_bytes
            if freed_bytes > TRIMMED_BYTES:  # or tuning would take the weights twice
                give_back_freed()
                freed_bytes = 0
    staying = {group for group in displaced if group in resident}
    for group in staying:
        group.is_settled = False
        group.update_layout()
    return staying


def put_on(component: BoundComponent, staying: set[Group], device: torch.device) -> None:
    """Give groups that stay their places on the device."""
    if staying:
        with gaps_filled(device):
            for keeper in component.keepers:
                for sharing in pieces(keeper, staying):
                    for group, flat in _places(sharing, device):
                        group.settle_on_device(flat)
                    staying.difference_update(sharing)


def _places(sharing: list[Group], device: torch.device) -> list[tuple[Group, torch.Tensor]]:
    """Places in one piece of the device, where that has no room for them beside the old ones too: a pipeline may lie
    there whole before it is tuned."""
    try:
        return flats(sharing, device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        for group in sharing:
            group.leave_device()
        return flats(sharing, device)


def _displaced(component: BoundComponent) -> list[Group]:
    """The groups that are not where they stay, and those that share a piece with one."""
    resident = component.resident_groups
    displaced = [
        group
        for group in component.groups
        if not group.is_settled or (group.piece != 0) != (group in resident) or group.is_elsewhere
    ]
    left = {group.piece for group in displaced} - {0}
    return displaced + [group for group in component.groups if group.piece in left and group not in displaced]
