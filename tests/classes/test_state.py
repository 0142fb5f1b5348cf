"""The walk over everything reachable: what it finds, and what it leaves alone."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.classes.outputs import differences, flat
from benchmarks.classes.reason import reason
from benchmarks.classes.state import State, changes


class Plain:
    """Neither a module nor known to anyone."""

    def __init__(self) -> None:
        self.table = [torch.ones(2), torch.zeros(2)]


class Slotted:
    __slots__ = ("kept", "never_set")

    def __init__(self) -> None:
        self.kept = {"a": 1}


def closure(kept: list[int]) -> Callable[[], list[int]]:
    return lambda: kept


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.embedder, self.slotted = Plain(), Slotted()
        self.hidden = [1]
        self.inner = closure(self.hidden)
        self.partial = functools.partial(print, end={"x": 1})


def replace_weight(model: Any) -> None:
    model.linear.weight = nn.Parameter(model.linear.weight.detach().clone())


EDITS: dict[str, tuple[Callable[[Any], object], str]] = {
    "in a plain object": (lambda m: m.embedder.table[0].add_(1), "m.embedder.table[0] another digest"),
    "in a slot": (lambda m: m.slotted.kept.update(a=2), "m.slotted.kept['a'] 1 -> 2"),
    "in a closure": (lambda m: m.hidden.append(2), "m.hidden[1] is new"),
    "in a partial": (lambda m: m.partial.keywords["end"].clear(), "m.partial.keywords['end']['x'] is gone"),
    "a weight's values": (lambda m: m.linear.weight.data.mul_(2), "m.linear.weight another digest"),
    "a weight exchanged": (replace_weight, "m.linear.weight another tensor, equal"),
    "a hook": (lambda m: m.register_forward_hook(print), "m._forward_hooks[int 0] is new"),
    "a flag": (lambda m: m.eval(), "m.linear.training True -> False"),
}


@pytest.mark.parametrize("name", EDITS)
def test_every_edit_is_seen_where_it_is(name: str) -> None:
    edit, expected = EDITS[name]
    model = Model()
    before = State(m=model)
    edit(model)
    assert expected in [f"{path} {text}" for path, text in changes(before, State(m=model)).items()]


def test_what_is_as_it_was_has_no_changes() -> None:
    model = Model()
    assert changes(State(m=model), State(m=model)) == {}


def test_what_calls_change_anyway_is_left_out() -> None:
    model = Model()
    before = State(m=model)
    model.slotted.kept.update(a=2)
    assert changes(before, State(m=model), leaving_out={"m.slotted"}) == {}


def test_of_what_was_exchanged_only_the_whole_is_named() -> None:
    model = Model()
    before = State(m=model)
    model.embedder = Plain()
    assert changes(before, State(m=model)) == {"m.embedder": "another Plain"}


def test_a_tensor_without_values_is_found_wherever_it_is() -> None:
    model = Model()
    with FakeTensorMode():
        model.embedder.table[1] = torch.ones(2)
    assert State(m=model).fakes == ["m.embedder.table[1]"]


def test_outputs_are_compared_bit_for_bit_and_nan_is_equal_to_nan() -> None:
    nan = flat({"images": torch.tensor([1.0, float("nan")]), "names": ["a"]})
    assert differences(nan, flat([torch.tensor([1.0, float("nan")]), "a"])) == []
    assert differences(nan, flat([torch.tensor([1.5, float("nan")]), "b"])) == ["differs by 0.5", "'a' instead of 'b'"]


def test_a_reason_names_no_folder_of_this_machine() -> None:
    missing = Path("/no/such/folder/file.txt")
    with pytest.raises(FileNotFoundError) as caught:
        missing.read_text()
    text = reason(caught.value)
    assert "/no/such" not in text
    assert "'file.txt'" in text
