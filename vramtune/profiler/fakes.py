"""Fake tensors, and operations on them that were done before.

A trace is tens of thousands of operations, most of them on arguments like another one's: in every layer, tile and
frame. `FakeTensorMode` does the first of them, in a quarter of a millisecond; the others are answered from its result.
"""

from collections.abc import Callable, Iterable, Sequence, Set
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.utils._mode_utils import no_dispatch

CPU = torch.device("cpu")
"""What fakes claim to be on: there attention stays fused; "cuda" and "meta" would be traced through the unfused kernel."""
SCALARS = frozenset(
    (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format)
)
EXCEPT_FLOATS = SCALARS - {float}
CONTAINERS = frozenset((list, tuple, torch.Size))
NOT_REPEATABLE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view}

aten = torch.ops.aten
WITH_A_NUMBER = {
    getattr(getattr(aten, name), kind) for name in ("add", "sub", "mul", "div") for kind in ("Tensor", "Scalar")
}


FILL = {aten.fill_.Scalar, aten.fill_.Tensor, aten.zero_.default}
"""What they return is what they fill, whatever with. A mask that is made row by row is forty thousand of them."""


class StorageLayout(NamedTuple):
    """How a tensor lies in its storage."""

    storage_bytes: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


def storage_id(tensor: torch.Tensor) -> int:
    """A number that tells living storages apart."""
    identity: int = tensor.untyped_storage()._cdata
    return identity


def layout_of(tensor: torch.Tensor) -> StorageLayout:
    """How a tensor with strides lies in its storage."""
    return StorageLayout(
        tensor.untyped_storage().nbytes(), tensor.dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset())
    )


def _fake(meta: torch.Tensor, mode: FakeTensorMode) -> FakeTensor:
    """What `FakeTensor(mode, meta, CPU)` makes, in a quarter of the time: a trace makes a hundred thousand."""
    fake: FakeTensor = torch.Tensor._make_subclass(
        FakeTensor, meta, False, dispatch_device=True, device_for_backend_keys=CPU
    )
    torch._C._set_throw_on_mutable_data_ptr(fake)
    vars(fake).update(_attributes(), fake_mode=mode)
    return fake


@cache
def _attributes() -> dict[str, Any]:
    """Those of every fake of no particular mode."""
    with no_dispatch():
        meta = torch.empty(0, device="meta")
    attributes = dict(vars(FakeTensor(FakeTensorMode(), meta, CPU)))
    del attributes["fake_mode"]
    return attributes


def new_fake(layout: StorageLayout, mode: FakeTensorMode) -> torch.Tensor:
    """A fake tensor with a storage of its own."""
    with no_dispatch():
        meta = torch.empty_strided(layout.size, layout.stride, dtype=layout.dtype, device="meta")
        if layout.offset or meta.untyped_storage().nbytes() != layout.storage_bytes:
            whole = torch.empty(layout.storage_bytes, dtype=torch.uint8, device="meta")
            meta = whole.view(layout.dtype).as_strided(layout.size, layout.stride, layout.offset)
    return _fake(meta, mode)


def fake_view(
    base: torch.Tensor,
    dtype: torch.dtype,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int,
    mode: FakeTensorMode,
) -> torch.Tensor:
    """One more fake tensor in the storage of a fake one."""
    with no_dispatch():
        meta = torch.empty(0, dtype=dtype, device="meta")
        meta.set_(base.untyped_storage(), offset, size, stride)
    return _fake(meta, mode)


def fake_like(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    """A fake of a tensor, whose storage holds no more than that; a parameter of a parameter."""
    with no_dispatch():
        meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    fake = _fake(meta, mode)
    if isinstance(tensor, nn.Parameter):
        fake._is_param = True  # as `nn.Parameter` marks tensors of other classes
    return fake


def copy_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's elements without gaps."""
    return tensor.numel() * tensor.element_size()


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor's elements fill its memory, in whatever order."""
    reach = 1
    for step, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and step != reach:
            return False
        reach *= size
    return True


class ViewOfInput(NamedTuple):
    """A result in the storage of one of an operation's inputs, by that one's number, and of its dtype."""

    number: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    """From the input's first element."""


Result = int | ViewOfInput | StorageLayout | None
"""An input by its number, a view of one, a tensor with a storage of its own, or nothing."""


class Answer(NamedTuple):
    """What an operation returned."""

    container: Callable[[list[Any]], Any]
    results: tuple[Result, ...]


_ANSWERS: dict[tuple[object, ...], Answer | None] = {}
"""Of this process, by operation and arguments; None where what an operation did is not all in its results."""


class FakeOperations:
    """Does operations on the fakes of one mode."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What `func` returns; it is done only where it was not yet with arguments like these."""
        if is_pure_view(func) and _is_plain(args[0]):
            return self._view(func, args, kwargs)
        if func in FILL and _is_plain(args[0]):
            return args[0]
        if func is aten.lift_fresh.default and _is_one_number(args[0]):
            return new_fake(layout_of(args[0]), self._mode)
        inputs: list[torch.Tensor] = []
        tokens: list[object] = [func, torch.get_default_dtype(), torch.is_inference_mode_enabled()]
        # Whatever numbers a pointwise operation is done with, its result has the same shape.
        scalars = EXCEPT_FLOATS if torch.Tag.pointwise in func.tags else SCALARS
        if not _describe(args, scalars, tokens, inputs) or not _describe(kwargs.items(), scalars, tokens, inputs):
            return func(*args, **kwargs)
        key = tuple(tokens)
        if (answer := _ANSWERS.get(key)) is not None:
            return answer.container([self._make(result, inputs) for result in answer.results])
        out = self._laid_out(func, func(*args, **kwargs), inputs)
        if key not in _ANSWERS:
            _ANSWERS[key] = _answer(func, out, inputs)
        return out

    def _laid_out(self, func: Any, out: Any, inputs: Sequence[torch.Tensor]) -> Any:
        """Of a tensor and a number: as the tensor lies. The fake's strides differ where a dimension is 1."""
        if func not in WITH_A_NUMBER or len(inputs) != 1:
            return out
        (given,) = inputs
        if out.shape != given.shape or out.stride() == given.stride() or not is_dense(given):
            return out
        return new_fake(StorageLayout(copy_bytes(out), out.dtype, given.shape, given.stride(), 0), self._mode)

    def _view(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operation returns that only looks at its input in another way: that takes no longer than to remember."""
        with in_kernel_invocation_manager(self._mode):
            out = func(*args, **kwargs)
        if isinstance(out, torch.Tensor):
            return _fake(out, self._mode)
        return type(out)(_fake(item, self._mode) for item in out)

    def _make(self, result: Result, inputs: Sequence[torch.Tensor]) -> torch.Tensor | None:
        if isinstance(result, StorageLayout):
            return new_fake(result, self._mode)
        if isinstance(result, ViewOfInput):
            number, size, stride, offset = result
            base = inputs[number]
            return fake_view(base, base.dtype, size, stride, int(base.storage_offset()) + offset, self._mode)
        return None if result is None else inputs[result]


def _describe(values: Iterable[Any], scalars: Set[type], tokens: list[object], inputs: list[torch.Tensor]) -> bool:
    """Add arguments to an operation's key and inputs; False where one of them cannot be in a key."""
    for value in values:
        kind = type(value)
        if kind is FakeTensor:
            if not _is_plain(value):
                return False
            # Which inputs share a storage decides which one a result is a view of.
            tokens.append((value.dtype, value.shape, value.stride(), _sharing(value, inputs)))
            inputs.append(value)
        elif kind in scalars:
            tokens.append((kind, value))
        elif kind is float:
            tokens.append(kind)
        elif kind in CONTAINERS:
            tokens.append(len(value))
            if not _describe(value, scalars, tokens, inputs):
                return False
        else:
            return False
    return True


@cache
def is_pure_view(func: Any) -> bool:
    """Whether an ATen operation's results are views of its first argument for certain, its only tensor."""
    has_parts = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    return bool(
        func.namespace == "aten" and func.is_view and not has_parts and func is not torch.ops.aten.lift_fresh.default
    )


def _answer(func: Any, out: Any, inputs: Sequence[torch.Tensor]) -> Answer | None:
    """What an operation returned, if that is all it did and depends on nothing but what is in its key."""
    name = func.overloadpacket.__name__
    if func.namespace != "aten" or not NOT_REPEATABLE.isdisjoint(func.tags):
        return None
    if name.startswith("as_strided"):  # an offset from the start of the storage
        return None
    if func._schema.is_mutable and not name.endswith("_"):  # `out=`, which may be resized
        return None
    container, items = (type(out), out) if type(out) in (list, tuple) else (_only, (out,))
    if not all(_is_told(item, inputs) for item in items):
        return None
    results = tuple(_result(item, inputs) for item in items)
    own = [storage_id(item) for item, result in zip(items, results, strict=True) if isinstance(result, StorageLayout)]
    return Answer(container, results) if len(set(own)) == len(own) else None


def _is_told(item: Any, inputs: Sequence[torch.Tensor]) -> bool:
    """Whether a `Result` says all of one thing that an operation returned."""
    if item is None or any(item is given for given in inputs):
        return True
    if not _is_plain(item) or item.fake_device != CPU:
        return False
    shared = _sharing(item, inputs)
    return shared is None or item.dtype == inputs[shared].dtype


def _result(item: torch.Tensor | None, inputs: Sequence[torch.Tensor]) -> Result:
    if item is None:
        return None
    for number, given in enumerate(inputs):
        if item is given:
            return number
    shared = _sharing(item, inputs)
    if shared is None:
        return layout_of(item)
    offset = int(item.storage_offset()) - int(inputs[shared].storage_offset())
    return ViewOfInput(shared, item.shape, item.stride(), offset)


def _is_plain(value: Any) -> bool:
    """Whether a value is a fake of which its layout says everything."""
    return (
        type(value) is FakeTensor
        and value.constant is None
        and value.layout is torch.strided
        and not (value.requires_grad or value.is_conj() or value.is_neg())
    )


def _is_one_number(value: Any) -> bool:
    """Whether a value is a real tensor such as `x[0] = 1` makes of its number."""
    return type(value) is torch.Tensor and value.numel() == 1 and value.is_cpu


def _sharing(tensor: torch.Tensor, others: Sequence[torch.Tensor]) -> int | None:
    """The number of the first of the others in the tensor's storage."""
    if not others:
        return None
    identity = storage_id(tensor)
    return next((number for number, other in enumerate(others) if storage_id(other) == identity), None)


def _only(items: list[Any]) -> Any:
    return items[0]
