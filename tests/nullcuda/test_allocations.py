"""What calls allocate: the trace's tape beside the events of PyTorch's own CUDA allocator."""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from benchmarks.memory_on_nullcuda import TracedCall, compared, named_weights, on_meta, rows_of_pipeline, watched
from tests import tiny_pipelines
from tests.nullcuda.tuned_pipelines import NAMES, build
from vramtune.profiler.cuda_reductions import staging_bytes
from vramtune.profiler.execution import ComponentMethod, trace_call
from vramtune.units import MIB

pytestmark = pytest.mark.without_values
MODE = FakeTensorMode(allow_non_fake_inputs=True)
HALF = torch.float16
MOST_SMALL_BYTES = 8192
LARGEST_UNEXPLAINED_BYTES = 64 * 1024
"""Statistics of norms, which CUDA keeps in float32, and seeds of attention: some bytes a row."""


class Calls(nn.Module):
    """A function as a component with one weight."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.function = function

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self.function(*args)


def attention(*qkv: torch.Tensor) -> torch.Tensor:
    return functional.scaled_dot_product_attention(*qkv[:3], attn_mask=qkv[3] if len(qkv) > 3 else None)


def heads(width: int, dtype: torch.dtype = HALF, length: int = 256) -> tuple[torch.Tensor, ...]:
    return (torch.zeros(2, length, 8, width, dtype=dtype).transpose(1, 2),) * 3


def image(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=HALF)


IN_ROWS = image(1, 4096, 512).transpose(1, 2).reshape(1, 512, 64, 64)
"""As a VAE's attention leaves it: channels last, but for the stride of its only image."""
LAST = image(1, 64, 64, 64).to(memory_format=torch.channels_last)
STRIDED = image(1, 64, 64, 64).transpose(1, 2)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[torch.Tensor, ...]]] = {
    "flash": (lambda: Calls(attention), heads(64)),
    "flash, padded": (lambda: Calls(attention), heads(60)),
    "wide heads": (lambda: Calls(attention), heads(512)),
    "float32": (lambda: Calls(attention), heads(64, torch.float32)),
    "mask": (lambda: Calls(attention), (*heads(64), image(2, 1, 256, 256))),
    "boolean mask": (lambda: Calls(attention), (*heads(64), torch.ones(2, 1, 256, 256, dtype=torch.bool))),
    "mask of odd length": (lambda: Calls(attention), (*heads(64, length=253), image(2, 1, 253, 253))),
    "boolean mask of odd length": (
        lambda: Calls(attention),
        (*heads(64, length=253), torch.ones(2, 1, 253, 253, dtype=torch.bool)),
    ),
    "mask of odd stride": (lambda: Calls(attention), (*heads(64), image(2, 1, 256, 260)[..., :256])),
    "mask and wide heads": (lambda: Calls(attention), (*heads(192), image(2, 1, 256, 256))),
    "group norm": (lambda: nn.GroupNorm(32, 512, dtype=HALF), (image(2, 512, 32, 32),)),
    "group norm of rows": (lambda: nn.GroupNorm(32, 512, dtype=HALF), (IN_ROWS,)),
    "group norm, channels last": (lambda: nn.GroupNorm(32, 64, dtype=HALF), (LAST,)),
    "convolution of rows": (lambda: nn.Conv2d(512, 64, 3, dtype=HALF), (IN_ROWS,)),
    "convolution, channels last": (lambda: nn.Conv2d(64, 64, 3, dtype=HALF), (LAST,)),
    "convolution, strided": (lambda: nn.Conv2d(64, 64, 3, dtype=HALF), (STRIDED,)),
    "convolution in time": (lambda: nn.Conv3d(8, 8, 3, dtype=HALF), (image(1, 9, 8, 32, 32).transpose(1, 2),)),
    "nearest of rows": (lambda: nn.Upsample(scale_factor=2, mode="nearest"), (IN_ROWS,)),
    "nearest, channels last": (lambda: nn.Upsample(scale_factor=2, mode="nearest-exact"), (LAST,)),
    "nearest, strided": (lambda: nn.Upsample(scale_factor=2, mode="nearest-exact"), (STRIDED,)),
    "layer norm, strided": (lambda: nn.LayerNorm(512), (torch.zeros(1, 512, 256).transpose(1, 2),)),
    "norm of channels": (lambda: Calls(lambda x: functional.normalize(x, dim=1)), (image(1, 1152, 32, 32),)),
    "mean of channels, slices": (lambda: Calls(lambda x: x.mean(1)), (torch.zeros(1, 1024, 3, 60, 52)[:, :, 1:],)),
    "mean of channels, few": (lambda: Calls(lambda x: x.mean(1)), (torch.zeros(1, 128, 256, 256),)),
    "mean of channels last": (lambda: Calls(lambda x: x.mean(1)), (torch.zeros(1, 4096, 512).transpose(1, 2),)),
    "mean of all": (lambda: Calls(lambda x: x.mean()), (torch.zeros(64, 1 << 16),)),
    "sum of long rows": (lambda: Calls(lambda x: x.sum(-1)), (torch.zeros(64, 1 << 16),)),
    "sum of images": (lambda: Calls(lambda x: x.sum((0, 2, 3))), (image(16, 64, 128, 128),)),
    "linear of rows": (lambda: nn.Linear(512, 512, dtype=HALF), (image(1, 512, 256).transpose(1, 2),)),
    "linear of a slice": (lambda: nn.Linear(512, 512, dtype=HALF), (image(2, 300, 512)[:, :256],)),
    "by a number, of rows": (
        lambda: Calls(lambda x: functional.interpolate(x / 1.0 + x, scale_factor=2.0)),
        (IN_ROWS,),
    ),
}


def sizes_apart(make: Callable[[], nn.Module], args: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    """A module's call on fakes beside the same on the card."""
    with MODE:
        fake = make()
    target = ComponentMethod(component="part", method="forward", module=fake, run=fake.forward, called="")
    trace = trace_call(target, (args, {}), MODE, is_known=lambda tensor: False)
    module = make()
    dtypes = {name: tensor.dtype for name, tensor in named_weights(module)}
    call = TracedCall(execution=trace, inputs=(tuple(map(on_meta, args)), {}), dtypes=dtypes, is_tiled=False)
    return compared(module, call, most_small_bytes=MOST_SMALL_BYTES)


@pytest.mark.parametrize("name", CASES)
def test_an_operation_takes_what_the_trace_says(name: str) -> None:
    row = sizes_apart(*CASES[name])
    assert [each for each in row["more_often"] if each[0] > MOST_SMALL_BYTES] == []
    assert row["predicted_reserved_bytes"] == row["reserved_bytes"]
    assert row["is_in_order"]


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_a_reduction_takes_the_buffers_that_its_shape_and_strides_say(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3, 16, 60, 128, 257, 1024, 4100]), min_size=1, max_size=4))
    assume(prod(shape) < 1 << 26)
    order = data.draw(st.permutations(range(len(shape))))
    dims = data.draw(st.lists(st.sampled_from(range(len(shape))), min_size=1, unique=True))
    x = torch.empty(
        [shape[dim] for dim in order], dtype=data.draw(st.sampled_from([HALF, torch.float32])), device="cuda"
    )
    x = x.permute([order.index(dim) for dim in range(len(shape))])
    reduce = data.draw(st.sampled_from([torch.mean, torch.sum, torch.linalg.vector_norm]))
    events, _ = watched(partial(reduce, x, dim=dims))
    taken = [event.num_bytes for event in events if event.num_bytes > 0]
    assert taken[1:] == list(staging_bytes(x, dims))


@pytest.mark.parametrize("name", NAMES)
def test_a_pipelines_components_take_what_the_trace_says(name: str) -> None:
    kwargs = tiny_pipelines.CALL["flux" if name == "larger flux" else name]
    rows = list(rows_of_pipeline(build(name), {"num_inference_steps": 2, "output_type": "pt", **kwargs}))
    assert rows
    for row in rows:
        assert "outcome" not in row, row["outcome"]
        assert row["predicted_reserved_bytes"] == row["reserved_bytes"] == row["replayed_bytes"], row
        assert all(size <= LARGEST_UNEXPLAINED_BYTES for size, _ in row["more_often"]), row


def test_the_replay_of_a_caching_allocator_is_exact_where_memory_is_cached_and_split() -> None:
    def many(x: torch.Tensor) -> torch.Tensor:
        for rows in (300, 9_000, 2_000, 30_000, 1_000, 20_000):
            kept = x.new_empty(rows, 1024)
            x = torch.cat([kept[:100], x.new_empty(rows // 2, 1024)])
        return x

    row = sizes_apart(lambda: Calls(many), (torch.zeros(100, 1024),))
    assert row["more_often"] == []
    assert row["predicted_reserved_bytes"] == row["reserved_bytes"] > 100 * MIB
