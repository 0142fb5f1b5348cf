"""Weight groups at run time: the tensors of each, their master on the host, and where they point now.

Truth is where the parameter points. A group that moves has its master in one flat pinned buffer, and between calls
its parameters are views of it: an edit in place reaches the master by itself, and whatever is rebound is found
by its address and becomes the master. A group that stays lives on the device alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from vramtune.layout import round_up
from vramtune.offload.pinned import pinned_buffer


class Owner(NamedTuple):
    """A name under which a module knows a tensor."""

    tensors: dict[str, torch.Tensor | None]
    """The module's `_parameters` or `_buffers`."""
    name: str


class Span(NamedTuple):
    """Where a tensor lies in its group's flat buffer."""

    offset: int
    num_bytes: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Held:
    """One parameter or buffer of a group; tied ones are one, with several owners."""

    tensor: torch.Tensor
    owners: list[Owner]
    device_before: torch.device
    """Where it was when it was first held."""
    address: int = 0
    """Where it points by our doing."""

    @property
    def is_replaced(self) -> bool:
        """Whether a module knows another tensor under the name by now."""
        return any(owner.tensors.get(owner.name) is not self.tensor for owner in self.owners)

    @property
    def is_edited(self) -> bool:
        """Whether someone else made it point elsewhere."""
        return self.tensor.numel() > 0 and self.tensor.data_ptr() != self.address

    def point_at(self, view: torch.Tensor) -> None:
        """Make it point there; identity, gradients' flag and ties stay."""
        # The address first: an interrupt between the two then looks like an edit, and loses nothing.
        self.address = view.data_ptr()
        self.tensor.data = view


@dataclass(slots=True, eq=False)
class Group:
    """A weight group of one component at run time."""

    name: str
    held: list[Held]
    spans: list[Span] = field(default_factory=list)
    num_bytes: int = 0
    master: torch.Tensor | None = None
    """The flat host buffer, or None while the group lives on the device for good."""
    home: list[torch.Tensor] = field(default_factory=list)
    """Its tensors as views of the master."""
    is_away: bool = False
    """Whether its tensors point at a copy on the device."""

    @property
    def flat(self) -> torch.Tensor:
        """The master, of a group that moves."""
        if self.master is None:
            raise RuntimeError(f"weight group {self.name!r} has no master: it never moves")
        return self.master

    @property
    def moves(self) -> bool:
        """Whether it has a master to copy from, and bytes to copy."""
        return self.master is not None and self.num_bytes > 0

    def measure(self) -> None:
        """Lay the tensors out in a flat buffer, as they are now."""
        self.spans, self.num_bytes = lay_out(held.tensor for held in self.held)

    @property
    def is_edited(self) -> bool:
        """Whether a tensor points elsewhere than we made it point."""
        return any(held.is_edited for held in self.held)

    def settle_on_host(self, device: torch.device) -> None:
        """Make the master what the tensors are now, wherever they are, and point them at it.

        `device` is the one that will copy from it, and has no copy from an earlier master under way. Tensors must
        not point at a copy that is known to be one.
        """
        self.measure()
        flat = self.master if self._may_overwrite_master() else None
        if flat is None:
            flat = pinned_buffer(self.num_bytes, device)
        home = views(flat, 0, self.spans)
        for held, view in zip(self.held, home, strict=True):
            view.copy_(held.tensor.data)
            held.point_at(view)
        self.master, self.home, self.is_away = flat, home, False

    def _may_overwrite_master(self) -> bool:
        """Whether the tensors, as laid out now, fill the master, and none of them is somewhere else in it.

        To lock new pages takes longer than to fill them, and casts come in pairs (SDXL's VAE, up and down again).
        """
        if self.master is None or self.master.numel() != self.num_bytes:
            return False
        storage, start = self.master.untyped_storage().data_ptr(), self.master.data_ptr()
        return all(
            held.tensor.untyped_storage().data_ptr() != storage
            or held.tensor.data_ptr() == start + span.offset
            for held, span in zip(self.held, self.spans, strict=True)
        )

    def settle_on_device(self, device: torch.device) -> None:
        """Move the tensors to the device, to stay, in one new piece; the master, if there was one, is given up.

        Also those that are there: the piece they are in stays allocated for as long as one of them is left in it.
        """
        self.measure()
        flat = torch.empty(self.num_bytes, dtype=torch.uint8, device=device)
        for held, view in zip(self.held, views(flat, 0, self.spans), strict=True):
            view.copy_(held.tensor.data)
            held.point_at(view)
        self.master, self.home, self.is_away = None, [], False

    def go_home(self) -> None:
        """Point the tensors at the master again; what someone else rebound meanwhile stays as it is."""
        if self.is_away:
            for held, view in zip(self.held, self.home, strict=True):
                if not held.is_edited:
                    held.point_at(view)
            self.is_away = False

    def go_to(self, copies: Sequence[torch.Tensor]) -> None:
        """Point the tensors at a copy of the master on the device, which outlives no call."""
        self.is_away = True
        for held, view in zip(self.held, copies, strict=True):
            held.point_at(view)

    def release(self) -> None:
        """Give every tensor storage of its own again, on the host."""
        self.go_home()
        for held in self.held:
            twin = torch.empty_strided(held.tensor.shape, held.tensor.stride(), dtype=held.tensor.dtype)
            held.point_at(twin.copy_(held.tensor.data))
        self.master, self.home = None, []


def lay_out(tensors: Iterable[torch.Tensor]) -> tuple[list[Span], int]:
    """Where each tensor goes in a flat buffer, and the buffer's bytes."""
    spans, end = [], 0
    for tensor in tensors:
        num_bytes = tensor.numel() * tensor.element_size()
        spans.append(Span(end, num_bytes, tensor.dtype, tensor.shape, dense_stride(tensor)))
        end += round_up(num_bytes)
    return spans, end


def dense_stride(tensor: torch.Tensor) -> tuple[int, ...]:
    """The tensor's own strides; those of a contiguous one where it has gaps or shares elements."""
    reach = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    if tensor.numel() == 0 or reach == tensor.numel():
        return tensor.stride()
    return torch.empty(tensor.shape, device="meta").stride()


def views(flat: torch.Tensor, start: int, spans: Iterable[Span]) -> list[torch.Tensor]:
    """The tensors of a group whose bytes begin at `start` of a flat buffer."""
    typed: dict[torch.dtype, torch.Tensor] = {}
    found = []
    for span in spans:
        if span.dtype not in typed:
            typed[span.dtype] = flat.view(span.dtype)
        base = typed[span.dtype]
        offset = base.storage_offset() + (start + span.offset) // span.dtype.itemsize
        found.append(base.as_strided(span.shape, span.stride, offset))
    return found


def collect(modules: Iterable[nn.Module], taken: dict[torch.Tensor, Held]) -> list[Held]:
    """The tensors in these modules that no group has taken yet."""
    inside = (part for module in modules for part in module.modules())
    return [held for part in inside for held in collect_own(part, taken)]


def collect_own(module: nn.Module, taken: dict[torch.Tensor, Held]) -> list[Held]:
    """The module's own tensors, without its children's, that no group has taken yet; those taken learn of it."""
    found = []
    for tensors in (module._parameters, module._buffers):
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            owner = Owner(tensors, name)  # type: ignore[arg-type]
            if tensor not in taken:
                taken[tensor] = Held(tensor, [], tensor.device)
                found.append(taken[tensor])
            # by identity: equal dicts may be two modules', and to compare their tensors would go by values
            if not any(known.tensors is tensors and known.name == name for known in taken[tensor].owners):
                taken[tensor].owners.append(owner)
    return found
