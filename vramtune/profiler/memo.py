"""Answer a submodule's repeated calls from the first one.

A video VAE decodes frame by frame, a tiled one tile by tile: the same child is called with equal arguments
hundreds of times. Each further call copies the first one's stretch of the tape, with storages of its own.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from vramtune.profiler.fakes import StorageLayout, fake_view, layout_of, new_fake, storage_id
from vramtune.profiler.known_values import ComponentTracker
from vramtune.profiler.signature import PLAIN, Description, describe
from vramtune.profiler.tensor_trees import tensors_of
from vramtune.profiler.tracker import Allocation, Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenTensor:
    """A result that is one of the tensors among the arguments, by its position there."""

    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewOfGiven:
    """A result in the storage of a tensor among the arguments."""

    position: int
    layout: StorageLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTensor:
    """A result in a storage that the call allocated, as `key` on the recorded tape."""

    key: int
    layout: StorageLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenContainer:
    """A list or dict inside another one, by its number among the arguments'."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatableCall:
    """One call, ready to be repeated."""

    tape: tuple[Entry, ...]
    positions: dict[int, int]
    """Position of a tensor among the arguments, by the key of its storage on the tape."""
    outputs: tuple[Any, ...]
    spec: TreeSpec
    contents: tuple[Any, ...]
    """What the lists and dicts among the arguments held afterwards, as results."""


class _UnrepeatableError(Exception):
    """The call kept or freed something that its arguments and results do not show."""


@contextmanager
def memoised_children(component: nn.Module, tracker: ComponentTracker, mode: FakeTensorMode) -> Iterator[None]:
    """While entered, the component's direct children answer equal calls from the first one."""
    children = list(component.children())
    before = [vars(child).get("forward") for child in children]
    try:
        for child in children:
            vars(child)["forward"] = memoised(child.forward, tracker, mode)
        yield
    finally:
        for child, forward in zip(children, before, strict=True):
            vars(child).pop("forward", None)
            if forward is not None:
                vars(child)["forward"] = forward


def memoised(forward: Callable[..., Any], tracker: ComponentTracker, mode: FakeTensorMode) -> Callable[..., Any]:
    """A `forward` that runs once for each different set of arguments."""
    memo: dict[object, RepeatableCall | None] = {}

    @wraps(forward)
    def answer(*args: Any, **kwargs: Any) -> Any:
        arguments = describe((args, kwargs))
        if arguments.objects:  # what they hold cannot be seen
            del arguments
            return forward(*args, **kwargs)
        key = arguments.key
        if (known := memo.get(key)) is not None:
            return replay(known, arguments, tracker, mode)
        start, num_decisions = CallStart(arguments, tracker), tracker.num_decisions
        del arguments  # the call must be free to let go of what its containers held
        outputs = forward(*args, **kwargs)
        asked_for_values = tracker.num_decisions > num_decisions  # which equal arguments need not share
        if asked_for_values or any(map(tracker.is_known, tensors_of(outputs))):
            memo[key] = None
        elif key not in memo:
            memo[key] = start.repeatable(outputs)
        return outputs

    return answer


class CallStart:
    """The state in which a call begins; its references are weak, so that the call can free what it likes."""

    def __init__(self, arguments: Description, tracker: ComponentTracker) -> None:
        self._tracker = tracker
        self._start = len(tracker.tape)
        self._first_key = tracker.new_key()
        self._given = [weakref.ref(tensor) for tensor in arguments.tensors]
        self._containers = arguments.containers
        storages = [storage_id(tensor) for tensor in arguments.tensors]
        self._position = {storage: position for position, storage in reversed(list(enumerate(storages)))}
        self._position_of_key = {
            tracker.keys[storage]: position for storage, position in self._position.items() if storage in tracker.keys
        }

    def repeatable(self, outputs: Any) -> RepeatableCall | None:
        """What the call did, or None where it cannot be repeated from that alone."""
        leaves, spec = tree_flatten(outputs)
        tape = tuple(self._tracker.tape[self._start :])
        try:
            self._refuse_foreign_frees(tape)
            call = RepeatableCall(
                tape=tape,
                positions=self._position_of_key,
                outputs=tuple(map(self._result, leaves)),
                spec=spec,
                contents=tuple(map(self._content, self._containers)),
            )
            self._refuse_hidden_survivors(call)
        except _UnrepeatableError:
            return None
        return call

    def _refuse_foreign_frees(self, tape: tuple[Entry, ...]) -> None:
        for entry in tape:
            if isinstance(entry, Allocation) and entry.key < self._first_key and entry.key not in self._position_of_key:
                raise _UnrepeatableError

    def _refuse_hidden_survivors(self, call: RepeatableCall) -> None:
        results = [*call.outputs, *(item for content in call.contents for item in _values(content))]
        shown = {result.key for result in results if isinstance(result, NewTensor)}
        if any(key > self._first_key and key not in shown for key in self._tracker.keys.values()):
            raise _UnrepeatableError

    def _content(self, container: Any) -> Any:
        if isinstance(container, dict):
            return {key: self._result(item) for key, item in container.items()}
        return [self._result(item) for item in container]

    def _result(self, item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return self._tensor(item)
        if isinstance(item, PLAIN):
            return item
        number = next((n for n, container in enumerate(self._containers) if container is item), None)
        if number is None:
            raise _UnrepeatableError
        return GivenContainer(number=number)

    def _tensor(self, tensor: torch.Tensor) -> GivenTensor | ViewOfGiven | NewTensor:
        for position, reference in enumerate(self._given):
            if reference() is tensor:
                return GivenTensor(position=position)
        storage = tensor.untyped_storage()
        layout = layout_of(tensor)
        # Before the given ones: a given tensor's storage may have died and its address serve a new one.
        key = self._tracker.keys.get(storage._cdata, 0)
        if key > self._first_key:
            return NewTensor(key=key, layout=layout)
        if storage._cdata not in self._position:
            raise _UnrepeatableError
        return ViewOfGiven(position=self._position[storage._cdata], layout=layout)


def replay(call: RepeatableCall, arguments: Description, tracker: ComponentTracker, mode: FakeTensorMode) -> Any:
    """Write a call on the tape again and make its results."""
    keys = _write_again(call, arguments, tracker)
    made: dict[int, torch.Tensor] = {}

    def view(base: torch.Tensor, layout: StorageLayout) -> torch.Tensor:
        return fake_view(base, layout.dtype, layout.size, layout.stride, layout.offset, mode)

    def result(template: Any) -> Any:
        if isinstance(template, GivenTensor):
            return arguments.tensors[template.position]
        if isinstance(template, GivenContainer):
            return arguments.containers[template.number]
        if isinstance(template, ViewOfGiven):
            return view(arguments.tensors[template.position], template.layout)
        if not isinstance(template, NewTensor):
            return template
        if template.key in made:
            return view(made[template.key], template.layout)
        made[template.key] = new = new_fake(template.layout, mode)
        tracker.follow(new.untyped_storage(), keys[template.key])
        return new

    for container, content in zip(arguments.containers, call.contents, strict=True):
        _refill(container, content, result)
    return tree_unflatten([result(template) for template in call.outputs], call.spec)


def _write_again(call: RepeatableCall, arguments: Description, tracker: ComponentTracker) -> dict[int, int]:
    """Append the call's tape with new keys; returns the new key of each old one."""
    keys: dict[int, int] = {}
    tape = tracker.tape
    for entry in call.tape:
        if not isinstance(entry, Allocation):
            tape.append(entry)
            continue
        key, num_bytes = entry
        if key in call.positions:
            storage = arguments.tensors[call.positions[key]].untyped_storage()
            keys[key] = tracker.keys[storage._cdata]
            tracker.forget(storage)
        elif num_bytes > 0:
            keys[key] = tracker.new_key()
        tape.append(Allocation(keys[key], num_bytes))
    return keys


def _refill(container: Any, content: Any, result: Callable[[Any], Any]) -> None:
    if isinstance(container, dict):
        new = {key: result(template) for key, template in content.items()}
        container.clear()
        container.update(new)
    else:
        container[:] = [result(template) for template in content]


def _values(content: Any) -> list[Any]:
    return list(content.values() if isinstance(content, dict) else content)
