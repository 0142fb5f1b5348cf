"""Weight groups at run time: the tensors of each, their master on the host, and what they point at now.

A parameter's value is what it points at. A group that moves has its master in one flat pinned buffer, and between
calls its parameters are views of it: an edit in place reaches the master by itself, and whatever was rebound is
noticed by its address and becomes the master. Where a plan, or the system, does not let it be page-locked, the tensors'
own memory is the master: the group is in place. A group that stays lives on the device alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from vramtune.layout import round_up
from vramtune.offload.pinned import pinned_buffer
from vramtune.plain_tensors import PlainTensor, address_of, own_tables, plain_tensors, value_of


class TensorName(NamedTuple):
    """A name under which a module has a weight."""

    tensors: dict[str, torch.Tensor | None]
    """The module's `_parameters` or `_buffers`."""
    name: str


class Extent(NamedTuple):
    """A tensor's place in its group's flat buffer."""

    offset: int
    num_bytes: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]


@dataclass(slots=True, eq=False)
class HeldTensor:
    """A plain tensor of a group's parameters and buffers; of a tied one it is held once, with several names."""

    plain: PlainTensor
    weight: torch.Tensor
    """The parameter or buffer that it is, or is a part of."""
    names: list[TensorName]
    device_before: torch.device
    """Device of the tensor when it was first held."""
    address: int = 0
    """Address that we made the tensor point at; 0 while what it points at is its own."""
    version: int = 0
    """Number of in-place writes to the tensor when we last looked."""

    @property
    def tensor(self) -> torch.Tensor:
        """The tensor itself, which may be of a class of its own."""
        return self.plain.tensor

    @property
    def value(self) -> torch.Tensor:
        """What it points at."""
        return value_of(self.plain.tensor)

    def point_at(self, view: torch.Tensor) -> None:
        """Make the tensor point at a view; its identity, gradient flag and ties stay."""
        point([(self, view)])

    @torch.inference_mode(False)
    def make_own(self) -> None:
        """Give the tensor storage of its own on the host, if it points at ours."""
        if self.address:
            value = self.value
            self.plain.point_at(
                torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu").copy_(value)
            )
            self.address = 0

    @torch.inference_mode(False)
    def go_home(self) -> None:
        """Give the tensor storage of its own where it was when it was first held."""
        self.make_own()
        self.plain.point_at(self.value.to(self.device_before))


@dataclass(slots=True, eq=False)
class Group:
    """A weight group of one component at run time."""

    name: str
    held: list[HeldTensor]
    extents: list[Extent] = field(default_factory=list)
    num_bytes: int = 0
    buffer: torch.Tensor | None = None
    """Page-locked memory of the host, or None while the group lives on the device for good, or in place."""
    master: torch.Tensor | None = None
    """The beginning of the buffer, as far as the group's bytes go."""
    master_views: list[torch.Tensor] = field(default_factory=list)
    """Views of the master, one for each tensor; none while the group lives on the device for good."""
    is_locked: bool = True
    """Whether the master is to be page-locked, and the system has not refused that."""
    piece: int = 0
    """Address of the piece of device memory in which the group stays, maybe with others; 0 if it does not."""
    piece_bytes: int = 0
    """All of that piece."""
    uses_copy: bool = False
    """Whether the tensors point at a copy on the device."""
    is_settled: bool = False
    """Whether the tensors are all where they stay: an interrupt may come while some are."""

    @property
    def flat(self) -> torch.Tensor:
        """The master of a group that moves."""
        if self.master is None:
            raise RuntimeError(f"weight group {self.name!r} has no flat master: it never moves, or is in place")
        return self.master

    @property
    def moves(self) -> bool:
        """Whether there is a master to copy from, and bytes to copy."""
        return bool(self.master_views) and self.num_bytes > 0

    @property
    def is_in_place(self) -> bool:
        """Whether the tensors' own memory is the master."""
        return bool(self.master_views) and self.master is None

    @property
    def is_elsewhere(self) -> bool:
        """Whether the master is page-locked and should not be, or the other way round."""
        return bool(self.master_views) and self.is_in_place == self.is_locked

    @property
    def is_replaced(self) -> bool:
        """Whether a module has another tensor in the place of one of these."""
        return is_any_replaced(self.held)

    @property
    def is_edited(self) -> bool:
        """Whether someone else made one of the tensors point elsewhere, or they were never settled to the end."""
        return not self.is_settled or bool(edited(self.held))

    @property
    def is_written(self) -> bool:
        """Whether someone wrote to one of the tensors in place while there may be copies of it."""
        return self.moves and bool(written(self.held))

    def go_home(self) -> None:
        """Give every tensor storage of its own where it was when it was first held."""
        for held in self.held:
            held.go_home()

    def note_writes(self) -> None:
        """Take what was written so far for known: no copy from before is used any more."""
        for held in self.held:
            held.version = num_writes(held.tensor)

    def update_layout(self) -> None:
        """Lay the tensors out in a flat buffer as they are now."""
        self.extents, self.num_bytes = lay_out(held.value for held in self.held)

    @torch.inference_mode(False)
    def settle_on_host(self, device: torch.device) -> None:
        """Make the master hold what the tensors are now, wherever they are, and point them at it.

        `device` is the one that will copy from it; no copy from an earlier master may be under way, and no tensor
        may point at a copy of ours.
        """
        self.is_settled = False
        self.update_layout()
        buffer = self._locked_buffer(device) if self.is_locked else None
        if buffer is None:
            flat, master_views = None, list(map(self._own_memory, self.held, self.extents))
        else:
            flat = buffer[: self.num_bytes]
            master_views = views_of_their_own(flat, self.extents)
        for held, view in zip(self.held, master_views, strict=True):
            if address_of(held.tensor) != view.data_ptr():
                view.copy_(held.value)
            held.point_at(view)
        self.buffer, self.master, self.master_views, self.piece = buffer, flat, master_views, 0
        self.uses_copy, self.is_settled = False, True

    @torch.inference_mode(False)
    def leave_device(self) -> None:
        """Have the tensors wait in ordinary memory of the host for their place on the device: what they leave may be needed
        for it."""
        self.is_settled = False
        for held in self.held:
            held.plain.point_at(held.value.cpu())

    def _locked_buffer(self, device: torch.device) -> torch.Tensor | None:
        """Page-locked memory for the tensors as laid out now; None, from then on, where the system refuses."""
        if self.buffer is not None and self._fits(self.buffer):
            return self.buffer
        buffer = pinned_buffer(self.num_bytes, device)
        self.is_locked = buffer is not None
        return buffer

    def _own_memory(self, held: HeldTensor, extent: Extent) -> torch.Tensor:
        """A tensor over what the held one points at, or over new memory where that is not the host's, or not dense."""
        value = held.value
        if value.is_cpu and value.stride() == extent.stride and not self._is_in_buffer(value):
            storage, start = value.untyped_storage(), int(value.storage_offset())
            return torch.empty(0, dtype=extent.dtype, device="cpu").set_(storage, start, extent.shape, extent.stride)
        return torch.empty_strided(extent.shape, extent.stride, dtype=extent.dtype, device="cpu")

    def _is_in_buffer(self, value: torch.Tensor) -> bool:
        if self.buffer is None:
            return False
        return self.buffer.data_ptr() <= value.data_ptr() < self.buffer.data_ptr() + self.buffer.numel()

    def _fits(self, buffer: torch.Tensor) -> bool:
        """Whether the tensors, as laid out now, may fill the buffer, and none of them is somewhere else in it.

        To lock new pages takes longer than to fill them, and casts come in pairs: SDXL's VAE goes to float32 and back in
        each call, and stays in the memory that float32 took. A buffer of which less than half would be used is given up.
        """
        if not self.num_bytes <= buffer.numel() <= 2 * self.num_bytes:
            return False
        start = buffer.data_ptr()
        return all(
            (address := address_of(held.tensor)) == start + extent.offset
            or not start <= address < start + buffer.numel()
            for held, extent in zip(self.held, self.extents, strict=True)
        )

    @torch.inference_mode(False)
    def settle_on_device(self, flat: torch.Tensor) -> None:
        """Move the tensors, as they were laid out last, to flat memory of the device to stay; give up the master.

        Tensors that are there already move too: an old piece stays allocated for as long as one of them is in it.
        """
        self.is_settled = False
        for held, view in zip(self.held, views(flat, 0, self.extents), strict=True):
            view.copy_(held.value)
            held.point_at(view)
        self.buffer, self.master, self.master_views = None, None, []
        storage = flat.untyped_storage()
        self.piece, self.piece_bytes = storage.data_ptr(), storage.nbytes()
        self.uses_copy, self.is_settled = False, True

    def use_master(self) -> None:
        """Point the tensors at the master again; what someone else rebound meanwhile stays as it is.

        What someone wrote to the copy goes to the master.
        """
        if self.uses_copy:
            rebound, changed = set(edited(self.held)), set(written(self.held))
            homes = [pair for pair in zip(self.held, self.master_views, strict=True) if pair[0] not in rebound]
            for held, view in homes:
                if held in changed:
                    view.copy_(held.value)
            point(homes)
            self.uses_copy = False

    def use_copy(self, copies: Sequence[torch.Tensor]) -> None:
        """Point the tensors at a copy of the master on the device, which never outlives the pipeline's call."""
        self.uses_copy = True
        point(zip(self.held, copies, strict=True))

    def release(self) -> None:
        """Give every tensor storage of its own again, on the host."""
        self.use_master()
        self.is_settled = False
        for held in self.held:
            if self.is_in_place:
                held.address = 0
            held.make_own()
        self.buffer, self.master, self.master_views, self.piece = None, None, [], 0


# These four go through the tensors of a group at each of its turns, and those of a component at each of its calls: no
# property and no function of ours is called for one tensor, which would cost the host more than what it does.


def point(pairs: Iterable[tuple[HeldTensor, torch.Tensor]]) -> None:
    """Make tensors point at views; their identities, gradient flags and ties stay."""
    with torch._C.DisableTorchFunctionSubclass():
        for held, view in pairs:
            # The address first: an interrupt between the two then looks like an edit, and loses nothing.
            held.address = view.data_ptr()
            if held.plain.followers:
                held.plain.point_at(view)
            else:
                held.plain.tensor.data = view


def is_any_replaced(all_held: Iterable[HeldTensor]) -> bool:
    """Whether a module has another weight under one of the names by now, or a weight another tensor."""
    for held in all_held:
        weight = held.weight
        for tensors, name in held.names:
            if tensors.get(name) is not weight:
                return True
        if held.plain.attributes and held.plain.is_replaced:
            return True
    return False


def edited(all_held: Iterable[HeldTensor]) -> list[HeldTensor]:
    """Those that someone else made point elsewhere."""
    with torch._C.DisableTorchFunctionSubclass():
        return [
            held for held in all_held if held.plain.tensor.data_ptr() != held.address and held.plain.tensor.numel() > 0
        ]


def written(all_held: Sequence[HeldTensor]) -> list[HeldTensor]:
    """Those that someone wrote to in place since we last looked; writes through `.data` are not counted."""
    try:
        return [held for held in all_held if held.plain.tensor._version != held.version]
    except RuntimeError:  # an inference tensor counts none
        return [held for held in all_held if num_writes(held.plain.tensor) != held.version]


def num_writes(tensor: torch.Tensor) -> int:
    """Number of in-place writes to a tensor, where they are counted."""
    return -1 if tensor.is_inference() else tensor._version


@torch.inference_mode(False)
def flat_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a dense tensor on the host, over the same memory."""
    storage, start = tensor.untyped_storage(), int(tensor.storage_offset()) * tensor.element_size()
    return torch.empty(0, dtype=torch.uint8, device="cpu").set_(
        storage, start, (tensor.numel() * tensor.element_size(),), (1,)
    )


def lay_out(tensors: Iterable[torch.Tensor]) -> tuple[list[Extent], int]:
    """Where each tensor goes in a flat buffer, and the buffer's bytes."""
    extents, end = [], 0
    for tensor in tensors:
        num_bytes = tensor.numel() * tensor.element_size()
        extents.append(Extent(end, num_bytes, tensor.dtype, tensor.shape, dense_stride(tensor)))
        end += round_up(num_bytes)
    return extents, end


def dense_stride(tensor: torch.Tensor) -> tuple[int, ...]:
    """The tensor's own strides; those of a contiguous one where it has gaps or shares elements."""
    reach = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    if tensor.numel() == 0 or reach == tensor.numel():
        return tensor.stride()
    return torch.empty(tensor.shape, device="meta").stride()


@torch.inference_mode(False)  # or parameters that point at them would become inference tensors
def views(flat: torch.Tensor, start: int, extents: Iterable[Extent]) -> list[torch.Tensor]:
    """The tensors of a group whose bytes begin at `start` of a flat buffer."""
    typed: dict[torch.dtype, torch.Tensor] = {}
    tensors = []
    for extent in extents:
        if extent.dtype not in typed:
            typed[extent.dtype] = flat.view(extent.dtype)
        base = typed[extent.dtype]
        offset = base.storage_offset() + (start + extent.offset) // extent.dtype.itemsize
        tensors.append(base.as_strided(extent.shape, extent.stride, offset))
    return tensors


@torch.inference_mode(False)
def views_of_their_own(flat: torch.Tensor, extents: Iterable[Extent]) -> list[torch.Tensor]:
    """The same of a group's master, each with a storage of its own: `torch.save` takes no two dtypes from one."""
    storage, tensors = flat.untyped_storage(), []
    for offset, num_bytes, dtype, shape, stride in extents:
        start = int(flat.storage_offset()) + offset
        tensor = torch.empty(0, dtype=dtype, device="cpu")
        tensors.append(tensor.set_(storage[start : start + num_bytes], 0, shape, stride))
    return tensors


def collect(modules: Iterable[nn.Module], taken: dict[torch.Tensor, HeldTensor]) -> list[HeldTensor]:
    """Hold the tensors in these modules that no group has taken yet."""
    inside = (module for outer in modules for module in outer.modules())
    return [held for module in inside for held in collect_own(module, taken)]


def collect_own(module: nn.Module, taken: dict[torch.Tensor, HeldTensor]) -> list[HeldTensor]:
    """Hold the module's own tensors, without its children's, that no group has taken yet.

    Those that one has taken get this module's names too.
    """
    new = []
    for tensors in (module._parameters, module._buffers):
        for name, weight in tensors.items():
            if weight is None:
                continue
            own_tables(weight)
            for plain in plain_tensors(weight, module):
                held = taken.get(plain.tensor)
                if held is None:
                    held = taken[plain.tensor] = HeldTensor(plain, weight, [], plain.tensor.device)
                    new.append(held)
                # By identity: equal dicts may be two modules', and to compare their tensors would go by values.
                if not any(known.tensors is tensors and known.name == name for known in held.names):
                    held.names.append(TensorName(tensors, name))  # type: ignore[arg-type]
    return new
