"""Everything reachable from a pipeline, written down, so that two moments can be compared.

`State(pipe=pipe)` walks attributes, slots, containers, closures, defaults and bound methods; the names under which
it finds things are paths such as `pipe.transformer.rope_embedder.freqs_cis[0]`. Values are compared by value, tensors
also by identity, place and layout, everything else by identity. Classes, modules and what C code hides are not entered.
"""

import functools
import hashlib
import random
import types
import weakref
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from torch._subclasses.fake_tensor import FakeTensor

VALUES = (str, bytes, int, complex, type(None), torch.dtype, torch.device, torch.Size, Enum, PurePath, range)
CLOSED = (type, types.ModuleType, types.BuiltinFunctionType, weakref.ReferenceType, torch.Generator)
"""What is not entered."""
OF_MODULES = ("._modules", "._parameters", "._buffers")
"""Dictionaries that a path leaves out, as people do."""


class Thing(NamedTuple):
    """Any object, known by its identity."""

    kind: str
    identity: int


class TensorFacts(NamedTuple):
    """A tensor: which, where, and what is in it."""

    kind: str
    identity: int
    device: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool
    digest: str


class State:
    """What is reachable from `roots` now. It keeps all of it alive, so that no identity is given out again."""

    def __init__(self, **roots: object) -> None:
        self.facts: dict[str, object] = {}
        self.fakes: list[str] = []
        """Paths of tensors without values: a prediction's."""
        self._alive: list[object] = []
        known: set[int] = set()
        waiting = deque(roots.items())
        while waiting:
            path, thing = waiting.popleft()
            self.facts[path] = fact(thing)
            if isinstance(thing, FakeTensor):
                self.fakes.append(path)
            elif not isinstance(thing, (*VALUES, *CLOSED, float)) and id(thing) not in known:
                known.add(id(thing))
                self._alive.append(thing)
                waiting.extend(inside(path, thing))


def changes(before: State, after: State, *, leaving_out: Collection[str] = ()) -> dict[str, str]:
    """What is different now, by path: of what was exchanged, only the whole."""
    found: dict[str, str] = {}
    left_out = set(leaving_out)
    absent = object()
    for path in sorted({*before.facts, *after.facts}):
        old, new = before.facts.get(path, absent), after.facts.get(path, absent)
        if old != new and left_out.isdisjoint(up(path)) and found.keys().isdisjoint(up(path)):
            found[path] = "is new" if old is absent else "is gone" if new is absent else difference(old, new)
    return found


def up(path: str) -> Iterator[str]:
    """The path, and what it leads through."""
    yield path
    for position in range(len(path) - 1, 0, -1):
        if path[position] in ".[":
            yield path[:position]


def difference(before: object, after: object) -> str:
    """In words, without identities: they are others in every run."""
    if isinstance(before, TensorFacts) and isinstance(after, TensorFacts):
        names = [
            name
            for name, old, new in zip(TensorFacts._fields, before, after, strict=True)
            if old != new and name != "identity"
        ]
        return f"another {' and '.join(names)}" if names else "another tensor, equal"
    if isinstance(before, Thing) and isinstance(after, Thing):
        return f"another {after.kind}" if before.kind == after.kind else f"{before.kind} -> {after.kind}"
    return f"{short(before)} -> {short(after)}"


def short(found: object) -> str:
    return found.kind if isinstance(found, Thing | TensorFacts) else repr(found)[:60]


# ---------------------------------------------------------------------------------------------------
# One thing


def fact(thing: object) -> object:
    """What is written down of one thing."""
    kind = type(thing).__qualname__
    match thing:
        case float():
            return repr(thing)  # a NaN is equal to itself
        case torch.Tensor():
            return tensor_facts(thing)
        case np.ndarray():
            return "array", id(thing), str(thing.dtype), thing.shape, hashed(thing.tobytes())
        case np.generic():
            return kind, repr(thing)
        case torch.Generator():
            return kind, id(thing), hashed(thing.get_state().numpy().tobytes())
        case random.Random():
            return kind, id(thing), hash(thing.getstate())
        case np.random.RandomState():
            return kind, id(thing), repr(thing.get_state())
        case PIL.Image.Image():
            return kind, id(thing), hashed(thing.tobytes())
        case set() | frozenset():
            return kind, id(thing), sorted(map(repr_without_address, thing))
        case _:
            return thing if isinstance(thing, VALUES) else Thing(kind, id(thing))


def repr_without_address(thing: object) -> str:
    return repr(thing) if isinstance(thing, VALUES) else f"{type(thing).__qualname__} {id(thing)}"


def tensor_facts(tensor: torch.Tensor) -> TensorFacts:
    has_values = not tensor.is_meta and not isinstance(tensor, FakeTensor) and tensor.numel() > 0
    is_strided = tensor.layout is torch.strided
    return TensorFacts(
        type(tensor).__qualname__,
        id(tensor),
        str(tensor.device),
        str(tensor.dtype),
        tuple(tensor.shape),
        tensor.stride() if is_strided else (),
        tensor.requires_grad,
        digest(tensor) if has_values and is_strided else "",
    )


def digest(tensor: torch.Tensor) -> str:
    return hashed(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def hashed(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()[:12]


# ---------------------------------------------------------------------------------------------------
# What is inside it


def inside(path: str, thing: Any) -> Iterator[tuple[str, object]]:
    """What a thing holds, by path."""
    match thing:
        case torch.Tensor():
            yield from inside_attributes(path, thing)
            if thing.is_leaf and thing.grad is not None:
                yield f"{path}.grad", thing.grad
        case dict() | types.MappingProxyType():
            yield from inside_mapping(path, thing)
            yield from inside_attributes(path, thing)
        case list() | tuple() | deque():
            yield from ((f"{path}[{number}]", item) for number, item in enumerate(thing))
            yield from inside_attributes(path, thing)
        case types.FunctionType():
            yield from inside_function(path, thing)
        case types.MethodType():
            yield f"{path}.__self__", thing.__self__
            yield f"{path}.__func__", thing.__func__
        case functools.partial():
            yield from ((f"{path}.{name}", getattr(thing, name)) for name in ("func", "args", "keywords"))
        case _:
            yield from inside_attributes(path, thing)


def inside_mapping(path: str, mapping: Mapping[Any, object]) -> Iterator[tuple[str, object]]:
    short_path = next((path.removesuffix(end) for end in OF_MODULES if path.endswith(end)), None)
    for number, (key, item) in enumerate(mapping.items()):
        is_name = isinstance(key, VALUES) and not path.endswith("_hooks")  # whose keys count all hooks made
        name = repr(key) if is_name else f"{type(key).__qualname__} {number}"
        yield f"{path}[{name}]" if short_path is None else f"{short_path}.{key}", item


def inside_attributes(path: str, thing: Any) -> Iterator[tuple[str, object]]:
    for name, item in getattr(thing, "__dict__", {}).items():
        yield f"{path}.{name}", item
    for name, slot in slots(type(thing)):
        try:
            yield f"{path}.{name}", slot.__get__(thing)
        except AttributeError:  # a slot that nothing was put in
            continue


@functools.cache
def slots(kind: type) -> tuple[tuple[str, types.MemberDescriptorType], ...]:
    members = (item for base in kind.__mro__ for item in vars(base).items())
    return tuple((name, slot) for name, slot in members if isinstance(slot, types.MemberDescriptorType))


def inside_function(path: str, function: types.FunctionType) -> Iterator[tuple[str, object]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"{path}.<{name}>", cell.cell_contents
        except ValueError:  # a cell that nothing was put in
            continue
    yield f"{path}.__defaults__", function.__defaults__
    yield f"{path}.__kwdefaults__", function.__kwdefaults__
    yield from ((f"{path}.{name}", item) for name, item in vars(function).items())
