"""For pytest on the null card (`-p tests.nullcuda.plugin`): values in every test, a card as new, tests about speed left out."""

import gc
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from tests.nullcuda.card import card, reset
from tests.nullcuda.values import Values
from vramtune.machine.live import live_device
from vramtune.schema import Device

LEFT_OUT = {
    "test_live_facts_are_plausible": "asks how fast kernels are, and here they do nothing",
    "test_blocks_compiled_by_inductor_stream_as_they_are_and_give_their_bits": "kernels that Triton would make",
}
"""Tests for a GPU that say nothing on the null card, and why."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave those tests out, by name."""
    left_out = [item for item in items if item.name.partition("[")[0] in LEFT_OUT]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def measured() -> Device:
    """The card's facts, measured once and without values: products of large matrices would take the CPU long."""
    return live_device(torch.device("cuda"))


@pytest.fixture(autouse=True)
def null_card(request: pytest.FixtureRequest, measured: Device) -> Iterator[None]:
    """Values, and the card as every test finds it: its settings, and in its memory the libraries' workspace."""
    before = {name: getattr(card(), name) for name, _ in card()._fields_}
    reset()
    with nullcontext() if request.node.get_closest_marker("without_values") else Values():
        yield
    for name, setting in before.items():
        setattr(card(), name, setting)
    gc.collect()
    torch.cuda.empty_cache()
