"""Watch operations on fake or real tensors: live storage, work, and which weights are used under which modules."""

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._C import DispatchKey
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from vramtune.layout import rounded_bytes
from vramtune.profiler.fakes import is_pure_view, storage_id
from vramtune.profiler.operations import operation_work
from vramtune.profiler.quantized_layers import is_chosen_by_card, of_library
from vramtune.schema import Work

Stack = tuple[str, ...]
"""Paths, inside the component, of the modules that are executing; innermost last."""


class Allocation(NamedTuple):
    """Storage that begins to live, or ceases to (bytes below 0)."""

    key: int
    num_bytes: int


class Start(NamedTuple):
    """A module that owns weights begins, or one of its weights is used outside its `forward`."""

    layer: str


class End(NamedTuple):
    """The `forward` of a module that owns weights ends."""

    layer: str


Entry = Allocation | Start | End | Work
"""An event on a tape, which holds them in the order in which they happened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A parameter or buffer of a component; tied ones are a single weight."""

    name: str
    owners: tuple[str, ...]
    """Paths of the modules that own it directly."""
    num_bytes: int
    dtype: str
    is_buffer: bool = False


@dataclass(slots=True, kw_only=True)
class Usage:
    """How the modules and weights of one component were used."""

    weights: set[tuple[str, Stack]] = field(default_factory=set)
    """Names of the weights that were read, each with the stack at that moment."""
    entered: dict[str, None] = field(default_factory=dict)
    """Modules that were called through their `forward`, in order of their first call."""
    depends_on_card: bool = False
    """Whether a library chooses by the card among kernels that allocate differently."""


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes a tape of what is executed while it is the innermost mode.

    `weights` maps storages (their `_cdata`) to weights; these and whatever `know` is given are never counted.
    """

    supports_higher_order_operators = True

    def __init__(self, weights: Mapping[int, Weight]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights = weights
        self.tape: list[Entry] = []
        self.usage = Usage()
        self.stack: Stack = ()
        self.keys: dict[int, int] = {}
        """Live storages by `_cdata`."""
        self._known: set[int] = set(weights)
        self._deaths: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._numbers = itertools.count(1)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, so nothing need be kept from it, at each operation

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(map(stands_for_others, types)):
            return NotImplemented  # its class takes the operation apart, and what it does then comes here
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            (tensor,) = args
            return tensor.fake_device if isinstance(tensor, FakeTensor) else func(tensor)
        if (made_of_others := composite(func)) is not None:
            with self:
                return made_of_others(*args, **kwargs)
        inputs = list(tensors_in(args)) if not kwargs else list(tensors_in((args, kwargs.values())))
        out = self.execute(func, args, kwargs, inputs)
        if is_pure_view(func):
            return out
        if outputs := list(tensors_in((out,))):
            self.note(func, args, inputs, outputs)
        return out

    def execute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: Sequence[torch.Tensor]) -> Any:
        """Do an operation; `inputs` are the tensors among its arguments."""
        return func(*args, **kwargs)

    def note(
        self, func: Any, args: tuple[Any, ...], inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
    ) -> None:
        """Record an operation that was done: the weights that it read, what it allocated, its work."""
        read = {storage_id(tensor) for tensor in inputs}
        if not is_mutable(func) and all(storage_id(tensor) in read for tensor in outputs):
            return  # a view costs nothing
        for identity in read & self.weights.keys():
            self._use(self.weights[identity])
        self.usage.depends_on_card |= is_chosen_by_card(func)
        for tensor in outputs:
            self.count(tensor)
        work = operation_work(func, args, inputs=inputs, outputs=outputs)
        if work is not None:
            self.tape.append(work)

    def _use(self, weight: Weight) -> None:
        self.usage.weights.add((weight.name, self.stack))
        if not any(owner in self.stack for owner in weight.owners):
            self.tape.append(Start(weight.owners[0]))

    def know(self, tensors: Iterable[torch.Tensor]) -> None:
        """Never count these tensors, which the caller keeps alive."""
        self._known.update(map(storage_id, tensors))

    def count(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage from now until it dies, if it is new."""
        storage = tensor.untyped_storage()
        identity = storage._cdata
        if identity in self.keys or identity in self._known or storage.nbytes() == 0:
            return
        key = self.new_key()
        self.tape.append(Allocation(key, rounded_bytes(storage.nbytes())))
        self.follow(storage, key)

    def new_key(self) -> int:
        """A number that no storage has had yet."""
        return next(self._numbers)

    def follow(self, storage: torch.UntypedStorage, key: int) -> None:
        """Record the death of a storage whose birth is on the tape under `key`."""
        identity, num_bytes = storage._cdata, rounded_bytes(storage.nbytes())
        self.keys[identity] = key
        tape = self.tape

        def died(_: object) -> None:
            del self.keys[identity], self._deaths[key]
            tape.append(Allocation(key, -num_bytes))

        self._deaths[key] = weakref.ref(storage, died)

    def adopt(self, storages: Iterable[torch.UntypedStorage]) -> None:
        """Count what another tracker has followed until now."""
        for storage in storages:
            key = self.new_key()
            self.tape.append(Allocation(key, rounded_bytes(storage.nbytes())))
            self.follow(storage, key)

    def alive(self) -> Iterator[tuple[int, torch.UntypedStorage]]:
        """The storages that live now, with their keys."""
        for key, reference in list(self._deaths.items()):
            if (storage := reference()) is not None:
                yield key, storage

    def keep_what_is_left(self) -> None:
        """Forget what was done so far; the storages that live now are all that there was."""
        self.tape[:] = [Allocation(key, rounded_bytes(storage.nbytes())) for key, storage in self.alive()]

    def forget(self, storage: torch.UntypedStorage) -> None:
        """Stop following a storage whose death is on the tape already."""
        key = self.keys.pop(storage._cdata)
        del self._deaths[key]

    def enter(self, path: str, owners: set[str]) -> None:
        """A module begins to execute."""
        self.stack += (path,)
        self.usage.entered.setdefault(path)
        if path in owners:
            self.tape.append(Start(path))

    def leave(self, path: str, owners: set[str]) -> None:
        """The module that began last ends."""
        self.stack = self.stack[:-1]
        if path in owners:
            self.tape.append(End(path))

    @contextmanager
    def watch_modules(self, paths: Mapping[nn.Module, str], owners: set[str]) -> Iterator[None]:
        """While entered, the stack follows which of these modules are executing.

        The hooks are on every module call of the process; other modules' calls are ignored.
        """

        def begins(module: nn.Module, args: object) -> None:
            if (path := paths.get(module)) is not None:
                self.enter(path, owners)

        def ends(module: nn.Module, args: object, output: object) -> None:
            if (path := paths.get(module)) is not None:
                self.leave(path, owners)

        hooks = torch.nn.modules.module
        with hooks.register_module_forward_pre_hook(begins), hooks.register_module_forward_hook(ends, always_call=True):
            yield


def tensors_in(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors among an operation's arguments or results; these nest in lists and tuples only."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple | type({}.values())):
            yield from tensors_in(value)


@cache
def stands_for_others(kind: type) -> bool:
    """Whether tensors of a class are wrappers of others."""
    return kind is not FakeTensor and hasattr(kind, "__tensor_flatten__")


@cache
def is_mutable(func: Any) -> bool:
    """Whether an ATen operation writes into an argument."""
    return bool(func._schema.is_mutable)


@cache
def composite(func: Any) -> Callable[..., Any] | None:
    """What does an operation by others: those are what runs, and what costs. None where it is one itself.

    A higher-order operator is (flex attention, which is not compiled here); so are those that autograd takes apart
    before a mode sees them, but not below it, where higher-order operators and `torch.inference_mode` are. What has a
    kernel of its own runs as one, whatever it could be taken apart into (`upsample_nearest2d`).
    """
    if not isinstance(func, OpOverload):
        kernel: Callable[..., Any] = func.py_kernels[DispatchKey.CompositeExplicitAutograd]
        return kernel
    if (taken_apart := of_library(func)) is not None:
        return taken_apart
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CPU")  # type: ignore[no-untyped-call]
    return func.decompose if func._can_decompose() and not has_kernel else None


def written_tensors(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    """The arguments that an ATen operation writes into; not all such operations return them (`_foreach_add_`)."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from tensors_in((args[position] if position < len(args) else kwargs.get(argument.name),))
