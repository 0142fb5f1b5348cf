from itertools import pairwise

import pytest
import torch
from diffusers import DiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vramtune.profiler.inventory import OVERSIZE_EXTRA_FRACTION, even_partition, weigh_component
from vramtune.profiler.record import record_runs, recorded_component
from vramtune.units import MIB

LINEAR = 4 * 16 * 16 + 512
"""Bytes of a Linear(16, 16) in a flat buffer: its bias takes a unit of 512 bytes."""
SIZES = st.lists(st.integers(0, 300), max_size=30)


def totals(sizes, cap):
    return [sum(sizes[start:stop]) for start, stop in even_partition(sizes, cap=cap)]


class OneModelPipeline(DiffusionPipeline):
    """Calls its only component once, on a row of ones."""

    model_cpu_offload_seq = "model"

    def __init__(self, model):
        super().__init__()
        self.register_modules(model=model)

    @torch.no_grad()
    def __call__(self, width=16):
        return self.model(torch.ones(1, width))


def weigh(model):
    pipe = OneModelPipeline(model)
    recording = record_runs(pipe, [{}], largest_real_bytes=MIB, on_call=lambda name: None)[0]
    return weigh_component("model", recorded_component(model), [call.execution for call in recording.calls])


def group_names(component):
    return [group.name for group in component.groups]


class Blocks(nn.Module):
    """Equal blocks, each a stack of its own."""

    def __init__(self, num_blocks, num_linears=1):
        super().__init__()
        blocks = (nn.Sequential(*(nn.Linear(16, 16) for _ in range(num_linears))) for _ in range(num_blocks))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@given(SIZES, st.integers(1, 400))
def test_a_partition_covers_everything_in_order_and_stays_under_the_cap(sizes, cap):
    runs = even_partition(sizes, cap=cap)
    assert [index for run in runs for index in range(*run)] == list(range(len(sizes)))
    for start, stop in runs:
        largest = max(sizes[start:stop])
        assert sum(sizes[start:stop]) <= max(cap, largest + OVERSIZE_EXTRA_FRACTION * cap)


@given(SIZES, st.integers(1, 400))
def test_no_two_neighbouring_runs_of_a_partition_fit_into_one(sizes, cap):
    runs = totals(sizes, cap)
    assert all(left + right > cap for left, right in pairwise(runs) if left + right > 0)


def test_runs_of_a_partition_are_alike_rather_than_full():
    assert totals([1] * 10, cap=8) == [5, 5]


def test_small_neighbours_join_a_size_above_the_cap():
    assert totals([1, 200, 1, 1, 200], cap=100) == [201, 202]


def test_equal_blocks_become_equal_groups():
    component = weigh(Blocks(32))
    assert group_names(component) == ["root", *(f"blocks.{n}" for n in range(32))]
    assert {group.weight_bytes for group in component.groups[1:]} == {LINEAR}
    assert component.groups[0].weight_bytes == 0
    assert [layer.block for layer in component.layers] == [f"blocks.{n}" for n in range(32)]


def test_many_small_modules_are_joined_to_about_thirty_groups():
    component = weigh(Blocks(128))
    assert len(component.groups) == 33
    assert component.groups[1].modules == ("blocks.0", "blocks.1", "blocks.2", "blocks.3")
    assert component.groups[1].name == "blocks.0 … blocks.3"


def test_blocks_larger_than_a_group_are_split_at_their_layers():
    component = weigh(Blocks(4, num_linears=8))
    assert "blocks.3.7" in group_names(component)
    assert len(component.groups) == 33


def test_finer_groups_hold_the_same_weights_in_smaller_pieces():
    component = weigh(Blocks(128))
    assert [group.modules for group in component.finer_groups[1:]] == [(f"blocks.{n}",) for n in range(128)]
    finer = component.finer
    assert (finer.used_bytes, finer.groups) == (component.used_bytes, component.finer_groups)
    assert [layer.group for layer in finer.layers] == list(range(1, 129))
    assert finer.finer is finer


def test_what_cannot_be_cut_finer_has_no_finer_groups():
    component = weigh(Blocks(32))
    assert component.finer_groups == ()
    assert component.finer is component


def test_an_unused_layer_counts_as_weights_but_is_in_no_group():
    model = Blocks(32)
    model.idle = nn.Linear(100, 100)
    component = weigh(model)
    assert component.weights.allocated_bytes - component.used_bytes == 40_448 + 512  # each tensor a multiple of 512
    assert component.weights.num_tensors == 66
    assert len(component.layers) == 32


def test_a_split_module_s_own_weights_are_in_the_root_group():
    model = Blocks(32)
    model.shift = nn.Parameter(torch.zeros(16))
    model.forward = lambda x: Blocks.forward(model, x + model.shift)
    component = weigh(model)
    assert component.groups[0].weight_bytes == 512
    assert component.layers[0].name == ""
    assert component.layers[0].group == 0


def test_a_layer_used_outside_its_own_forward_is_in_the_root_group():
    model = Blocks(32)
    borrowed = model.blocks[5][0]
    model.forward = lambda x: nn.functional.linear(Blocks.forward(model, x), borrowed.weight)
    component = weigh(model)
    assert component.groups[0].weight_bytes == LINEAR
    assert all("blocks.5" not in group.modules for group in component.groups)


def test_a_weight_tied_across_blocks_counts_once_and_is_in_the_root_group():
    model = Blocks(32)
    model.blocks[9][0].weight = model.blocks[3][0].weight
    component = weigh(model)
    assert component.used_bytes == component.weights.allocated_bytes
    assert component.weights.num_bytes == 4 * (31 * 16 * 16 + 32 * 16)
    assert next(layer.group for layer in component.layers if layer.name == "blocks.3.0") == 0


def test_a_module_called_past_its_hooks_is_in_the_root_group():
    model = Blocks(32)
    block = model.blocks[0]
    model.blocks[0] = nn.Identity()
    model.plain = block
    model.forward = lambda x: Blocks.forward(model, block[0].forward(x))
    component = weigh(model)
    assert component.groups[0].weight_bytes == LINEAR


def test_a_module_whose_own_table_is_most_of_it_is_one_group():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("positions", torch.zeros(100, 16))
            self.proj = nn.Linear(16, 16)

        def forward(self, x):
            return self.proj(x) + self.positions[:1]

    model = Blocks(32)
    model.table = Table()
    model.forward = lambda x: Blocks.forward(model, model.table(x))
    component = weigh(model)
    assert "table" in group_names(component)
    assert component.groups[0].weight_bytes == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_of_a_component_is_that_of_most_bytes(dtype):
    model = Blocks(4).to(dtype)
    model.shift = nn.Parameter(torch.zeros(1))
    model.forward = lambda x: Blocks.forward(model, x.to(dtype))
    assert weigh(model).dtype == str(dtype).removeprefix("torch.")
