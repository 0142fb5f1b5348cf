"""Values that are known although components are traced on tensors without values.

A pipeline knows token ids, attention masks, grid sizes and timesteps before any model has run, and some models ask for
them: a mask is an index, a length decides a loop. So a fake tensor may have a real *twin*, which goes through the same
operations as long as it is small and all their inputs have one. What depends on weights has none; only of a router's
choice the costliest is taken for known (`routing.py`).
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_map_only

from vramtune.layout import rounded_bytes
from vramtune.profiler.cuda_kernels import Temporaries
from vramtune.profiler.fakes import FakeOperations, storage_id
from vramtune.profiler.routing import costliest_routing
from vramtune.profiler.tracker import Allocation, Tracker, Weight, is_mutable, tensors_in, written_tensors

LARGEST_TWIN_ELEMENTS = 2**20
"""Enough for a mask over a thousand tokens by a thousand, or an image's zero embeddings; computed with in milliseconds."""
ATTRIBUTE = "_vramtune_twin"

aten = torch.ops.aten
INDEXING = {aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default}
ASKS_FOR_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
UNSET = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
"""Operations that leave their result unset: a twin's is 0, so that equal calls have equal traces."""
SHAPE_ONLY = {"zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"}
"""Operations that take only the shape from their tensor: their result is known whatever that holds."""

TO_ARRAY: tuple[Any, ...] = (torch.Tensor.numpy, torch.Tensor.__array__)


@dataclass(slots=True, eq=False)
class Storage:
    """What views of one real storage share."""

    is_valid: bool = True
    """Whether it holds the call's own values: False once something without a twin was written into it."""


@dataclass(frozen=True, slots=True, eq=False)
class Twin:
    """The values of a fake tensor."""

    value: torch.Tensor
    sources: frozenset[int]
    """Numbers of the call's inputs that the values come from."""
    storage: Storage


class ComponentTracker(Tracker):  # type: ignore[no-untyped-call]
    """A tracker of a component's call that answers from twins where the code asks for values."""

    def __init__(
        self,
        weights: dict[int, Weight],
        mode: FakeTensorMode,
        temporaries: Callable[[Any, tuple[Any, ...], Sequence[torch.Tensor]], Temporaries] = lambda *_: Temporaries(),
    ) -> None:
        super().__init__(weights)
        self._operations = FakeOperations(mode)
        self._temporaries = temporaries
        self.deciding: set[int] = set()
        """Numbers of the inputs whose values the code asked for: another call with other values may go another way."""
        self.num_decisions = 0
        self._determined: set[int] = set()
        """Keys of storages that were born with known values."""

    def tell(self, fake: torch.Tensor, value: torch.Tensor, number: int) -> None:
        """Give an input of the call its values."""
        setattr(fake, ATTRIBUTE, Twin(value.detach().clone(), frozenset((number,)), Storage()))

    def is_known(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor's values are known."""
        return self._twin(tensor) is not None

    def count(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, and note whether its values are known."""
        super().count(tensor)
        if self.is_known(tensor) and (key := self.keys.get(storage_id(tensor))) is not None:
            self._determined.add(key)

    def note(
        self, func: Any, args: tuple[Any, ...], inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
    ) -> None:
        """Record an operation, with what it takes beside its results."""
        needed = self._temporaries(func, args, outputs)
        taken = list(map(self._take, needed.before))
        super().note(func, args, inputs, outputs)
        taken += map(self._take, needed.after)
        self.tape += (Allocation(key, -num_bytes) for key, num_bytes in reversed(taken))

    def _take(self, num_bytes: int) -> Allocation:
        """Record an allocation that is no tensor's."""
        taken = Allocation(self.new_key(), rounded_bytes(num_bytes))
        self.tape.append(taken)
        return taken

    def left_behind(self, outputs: Iterable[torch.Tensor]) -> list[torch.UntypedStorage]:
        """What the call has left elsewhere than in its outputs, and what another call like it would not leave again.

        Caches of known values (a rotary embedder's table) do not count: they are filled once.
        """
        returned = set(map(storage_id, outputs))
        return [s for key, s in self.alive() if key not in self._determined and s._cdata not in returned]

    def asked(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The values of a tensor, which decide what the code does; None where they are not known."""
        if (twin := self._twin(tensor)) is None:
            return None
        self.deciding.update(twin.sources)
        self.num_decisions += 1
        return twin.value

    def execute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: Sequence[torch.Tensor]) -> Any:
        """Do an operation on fakes, and with their twins where all inputs have one."""
        if func is aten.masked_select.default and self.is_known(args[1]):
            shape = torch.broadcast_shapes(args[0].shape, args[1].shape)  # type: ignore[no-untyped-call]
            mask = self.execute(aten.expand.default, (args[1], shape), {}, args[1:])
            return self.execute(aten.index.Tensor, (args[0].expand(shape), [mask]), {}, args)
        if func in INDEXING:
            args = self._with_known_masks(args)
        twins = self._twins(func, inputs)
        if twins is not None and _asks_for_values(func, args):
            return self._decide(func, args, kwargs, twins)
        out = self._operations.run(func, args, kwargs)
        if twins is not None and torch.Tag.nondeterministic_seeded not in func.tags:
            outputs = list(tensors_in((out,)))
            if all(output.numel() <= LARGEST_TWIN_ELEMENTS for output in outputs):
                is_itself = func is aten.lift_fresh.default
                self._attach(outputs, twins[0].value if is_itself else self._real(func, args, kwargs), twins)
                return out
        if func is aten.topk.default:
            self._suppose_routing(args, out[1])
        if is_mutable(func):
            for tensor in written_tensors(func, args, kwargs):
                if (twin := getattr(tensor, ATTRIBUTE, None)) is not None:
                    twin.storage.is_valid = False
        return out

    def _twin(self, tensor: torch.Tensor) -> Twin | None:
        """A tensor's twin; a small real tensor, such as a constant in the model's code, is its own."""
        twin: Twin | None = getattr(tensor, ATTRIBUTE, None)
        if twin is not None:
            return twin if twin.storage.is_valid else None
        if isinstance(tensor, FakeTensor) or tensor.is_meta or tensor.numel() > LARGEST_TWIN_ELEMENTS:
            return None
        return Twin(tensor, frozenset(), Storage())

    def _twins(self, func: Any, tensors: Sequence[torch.Tensor]) -> list[Twin] | None:
        """The twins of an operation's inputs; None where it needs one that there is not."""
        if func.overloadpacket.__name__ in SHAPE_ONLY:
            return []
        twins = []
        for tensor in tensors:
            if (twin := self._twin(tensor)) is None:
                return None
            twins.append(twin)
        return twins

    def _decide(self, func: Any, args: Any, kwargs: Any, twins: Sequence[Twin]) -> Any:
        """What an operation returns whose result, or its shape, depends on values."""
        self.deciding.update(*(twin.sources for twin in twins))
        self.num_decisions += 1
        real = self._real(func, args, kwargs)
        out = tree_map_only(torch.Tensor, _fake_like, real)
        self._attach(list(tensors_in((out,))), real, twins)
        return out

    def _suppose_routing(self, args: tuple[Any, ...], indices: torch.Tensor) -> None:
        """Give a router's choice the values that cost most."""
        with no_dispatch():
            chosen = costliest_routing(*args)
        if chosen is not None and chosen.numel() <= LARGEST_TWIN_ELEMENTS:
            self._attach([indices], chosen, [])

    def _with_known_masks(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of an indexing with known masks as positions: then the result has a shape."""
        indices: list[Any] = []
        for index in args[1]:
            twin = self._twin(index) if _is_mask(index) else None
            if twin is None:
                indices.append(index)
            else:
                indices += self._decide(aten.nonzero_numpy.default, (index,), {}, [twin])
        return (args[0], indices, *args[2:])

    def _real(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operation returns for the twins."""
        real_args, real_kwargs = tree_map_only(torch.Tensor, self._value, (args, kwargs))
        with no_dispatch():
            real = func(*real_args, **real_kwargs)
            return real.zero_() if func.overloadpacket.__name__ in UNSET else real

    def _value(self, tensor: torch.Tensor) -> torch.Tensor:
        twin = self._twin(tensor)
        if twin is not None:
            return twin.value
        return torch.zeros(1, dtype=tensor.dtype).expand(tensor.shape)  # only its shape is looked at

    def _attach(self, outputs: Sequence[torch.Tensor], real: Any, twins: Sequence[Twin]) -> None:
        sources = frozenset[int]().union(*(twin.sources for twin in twins))
        storages = {storage_id(twin.value): twin.storage for twin in twins}
        for output, value in zip(outputs, tensors_in((real,)), strict=True):
            storage = storages.get(storage_id(value)) or Storage()
            setattr(output, ATTRIBUTE, Twin(value, sources, storage))


class Questions(TorchFunctionMode):
    """Answers the questions for values that no dispatch mode sees: a tensor as an array, tensors as a tensor's data."""

    def __init__(self, tracker: ComponentTracker) -> None:
        super().__init__()
        self._tracker = tracker

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in TO_ARRAY and (values := self._tracker.asked(args[0])) is not None:
            with no_dispatch():
                return func(values.clone(), *args[1:], **kwargs)
        if func is torch.tensor and args and isinstance(args[0], list | tuple):
            args = (tree_map_only(FakeTensor, torch.Tensor.item, args[0]), *args[1:])
        return func(*args, **kwargs)


class PipelineTracker(Tracker):  # type: ignore[no-untyped-call]
    """A tracker of the pipeline's own work, on real tensors, that knows which of them depend on components' outputs."""

    def __init__(self, mode: FakeTensorMode, largest_real_bytes: int) -> None:
        super().__init__(weights={})
        self._mode = mode
        self._largest_real_elements = max(largest_real_bytes, LARGEST_TWIN_ELEMENTS)
        self._unknown: set[int] = set()
        """Storages, by their key on the tape."""

    def count_unknown(self, tensor: torch.Tensor) -> None:
        """Count a component's output, whose values are not those of a real call."""
        self.count(tensor)
        self._forget_values(tensor)

    def is_known(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor has the values that it has in a real call."""
        return not isinstance(tensor, FakeTensor) and self.keys.get(storage_id(tensor)) not in self._unknown

    def execute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: Sequence[torch.Tensor]) -> Any:
        """Do an operation; what something unknown is written into is unknown, also where nothing is returned.

        A large tensor that the pipeline fills itself (padding for features) is a fake: no component can ask for its values.
        """
        is_spoilt = is_mutable(func) and not all(map(self.is_known, inputs))
        is_large = not inputs and _num_elements_asked(args) > self._largest_real_elements
        with self._mode if is_large else nullcontext():
            out = super().execute(func, args, kwargs, inputs)
        if is_spoilt:
            for tensor in written_tensors(func, args, kwargs):
                self._forget_values(tensor)
        return out

    def note(
        self, func: Any, args: tuple[Any, ...], inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
    ) -> None:
        """Record an operation; what comes from something unknown is unknown."""
        is_known = func.overloadpacket.__name__ in SHAPE_ONLY or all(map(self.is_known, inputs))
        super().note(func, args, inputs, outputs)
        if not is_known:
            for tensor in outputs:
                self._forget_values(tensor)

    def _forget_values(self, tensor: torch.Tensor) -> None:
        if (key := self.keys.get(storage_id(tensor))) is not None:
            self._unknown.add(key)


def _num_elements_asked(args: tuple[Any, ...]) -> int:
    """How large a tensor an operation without tensors makes, as far as its first argument says."""
    return prod(args[0]) if args and isinstance(args[0], list | tuple) else 0


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


def _asks_for_values(func: Any, args: tuple[Any, ...]) -> bool:
    if func in INDEXING:
        return any(map(_is_mask, args[1]))  # positions ask for none, though the operation is tagged so
    return not ASKS_FOR_VALUES.isdisjoint(func.tags)


def _fake_like(real: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(real.shape, real.stride(), dtype=real.dtype)
