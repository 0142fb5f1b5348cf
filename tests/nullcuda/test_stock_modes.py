"""What diffusers' modes are said to need of the card is what they get through in, and what they are said to take at the most."""

import gc
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from tests.nullcuda.card import counters, reset
from tests.nullcuda.tuned_pipelines import Encoding, context_bytes
from vramtune.machine.live import live_device
from vramtune.predict import predict_profile
from vramtune.schema import ModeEstimate
from vramtune.tuner.stock_modes import stock_modes

pytestmark = pytest.mark.without_values
WIDTH = 1024
MOST_ABOVE = 0.15
"""How far the prediction may be above what is taken: weights find room between activations, which is counted apart."""


def group_offload(offload_type: str, **options: Any) -> Callable[[DiffusionPipeline], None]:
    cuda = torch.device("cuda")
    return lambda pipe: pipe.enable_group_offload(onload_device=cuda, offload_type=offload_type, **options)


MODES: dict[str, Callable[[DiffusionPipeline], object]] = {
    "all resident": lambda pipe: pipe.to("cuda"),
    "model offload": lambda pipe: pipe.enable_model_cpu_offload(),
    "sequential offload": lambda pipe: pipe.enable_sequential_cpu_offload(),
    "group offload, block": group_offload("block_level", num_blocks_per_group=1),
    "group offload, block, stream": group_offload("block_level", num_blocks_per_group=1, use_stream=True),
    "group offload, leaf": group_offload("leaf_level"),
    "group offload, leaf, stream": group_offload("leaf_level", use_stream=True),
}


class Block(nn.Module):
    """Layers of 12, 8 and 4 MiB, some more than a segment of 20 MiB holds of their kind, with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        rows = self.query(rows) + self.key(rows)
        return self.narrow(self.wide(rows)[..., : 2 * WIDTH])


class Model(nn.Module):
    """Blocks, one after the other; activations of some MiB."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(num_blocks))

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def device(self) -> torch.device:
        return self.blocks[0].query.weight.device

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            rows = block(rows)
        return rows


class OfManyRows(Encoding):
    shape = (3 * WIDTH, WIDTH)


def build() -> Encoding:
    return OfManyRows(Model(2).eval(), Model(6).eval())


@cache
def predicted() -> dict[str, ModeEstimate]:
    """By mode."""
    profile = predict_profile(build(), call_kwargs={}, device=live_device(torch.device("cuda")))
    return {mode.mode: mode for mode in stock_modes(profile)}


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    """Sets what the process may have of the card."""

    def limit(num_bytes: int) -> None:
        torch.cuda.set_per_process_memory_fraction((num_bytes - context_bytes()) / torch.cuda.mem_get_info()[1])

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


def taken_bytes(mode: str) -> int:
    """What two calls take: the first one finds out in which order layers come."""
    gc.collect()
    torch.cuda.empty_cache()
    pipe = build()
    reset()
    MODES[mode](pipe)
    for _ in range(2):
        pipe()
    return counters().used_peak_bytes


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_gets_through_in_what_it_is_said_to_need(mode: str, limited: Callable[[int], None]) -> None:
    # a model's weights come to lie in the segments of the encoder's activations, which are as large here: the most is needed
    needed = predicted()[mode].high if mode == "model offload" else predicted()[mode]
    limited(needed.peak_bytes)
    assert taken_bytes(mode) <= needed.peak_bytes


@pytest.mark.parametrize("mode", MODES)
def test_without_a_limit_it_takes_no_more_than_is_said(mode: str) -> None:
    taken = taken_bytes(mode)
    assert predicted()[mode].peak_bytes <= (1 + MOST_ABOVE) * taken
    assert taken <= predicted()[mode].high.peak_bytes
