"""What cuDNN takes for a convolution, as it was seen to on GPUs, beside what a profile says of it: in memory and in time."""

import gc
import os
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.nullcuda.card import counters
from vramtune.machine import trials
from vramtune.machine.live import live_device
from vramtune.pricing.reserved import under_limits
from vramtune.profiler.execution import ComponentMethod, trace_call
from vramtune.profiler.tapes import WorkList, traced_call
from vramtune.schema import TracedCall
from vramtune.units import MIB

pytestmark = pytest.mark.without_values
DTYPE = torch.bfloat16
SHORT, SHORTER, IMAGE = (1, 64, 128, 1024), (1, 64, 1024, 128), (1, 64, 256, 512)
"""Three of one size: PyTorch remembers by shape which engine it chose."""
IN_BYTES, OUT_BYTES = 16 * MIB, 32 * MIB
LATENTS = (1, 16, 48, 48)
TOLERANCE_BYTES = 4 * MIB
"""How near the lowest limit is found, and a segment's rounding."""


@pytest.fixture(autouse=True, scope="module")
def nothing_stays() -> Iterator[None]:
    """On the card, for other tests' sake."""
    yield
    layer.cache_clear()
    decoder.cache_clear()
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture(autouse=True)
def images(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(os.environ, "NULLCUDA_WORKSPACE", "images")
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.backends.cudnn.deterministic = False


@cache
def layer() -> nn.Module:
    return nn.Conv2d(64, 128, 3, padding=1, dtype=DTYPE, device="cuda").requires_grad_(False)


def limit(num_bytes: float) -> None:
    """Let the allocator take so much beyond what it holds."""
    gc.collect()
    torch.cuda.empty_cache()
    total_bytes = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + num_bytes + 1) / total_bytes)


def taken(image: torch.Tensor) -> tuple[int, float]:
    """Bytes that a convolution takes at its peak, its result among them, and seconds of its kernels."""
    torch.cuda.reset_peak_memory_stats()
    before_bytes, before_seconds = torch.cuda.memory_allocated(), counters().kernel_seconds
    layer()(image)
    return torch.cuda.max_memory_allocated() - before_bytes, counters().kernel_seconds - before_seconds


def test_contiguous_images_and_their_result_are_copied_and_channels_last_are_not() -> None:
    layer()
    image = torch.empty(IMAGE, dtype=DTYPE, device="cuda")
    num_bytes, seconds = taken(image)
    assert num_bytes == OUT_BYTES + IN_BYTES + OUT_BYTES
    least_bytes, least_seconds = taken(image.to(memory_format=torch.channels_last))
    assert OUT_BYTES <= least_bytes < OUT_BYTES + MIB  # and the weights in that order
    assert seconds - least_seconds == pytest.approx(2 * (IN_BYTES + OUT_BYTES) / 2.5e11, rel=0.05)


def test_where_memory_is_short_the_result_is_not_copied_and_below_that_there_is_no_engine() -> None:
    layer()
    image = torch.empty(SHORT, dtype=DTYPE, device="cuda")
    limit(IN_BYTES + OUT_BYTES)
    num_bytes, _ = taken(image)
    assert num_bytes == OUT_BYTES + IN_BYTES
    image = image.view(SHORTER)
    limit(IN_BYTES + OUT_BYTES - 2 * MIB)
    with pytest.raises(RuntimeError, match="unable to find an engine"):
        taken(image)


def vae() -> AutoencoderKL:
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPE)  # fakes cannot be cast in place
    try:
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(64, 128, 256),
            latent_channels=16,
        ).eval()
    finally:
        torch.set_default_dtype(before)


@cache
def traced_decode() -> TracedCall:
    """The call of the decode, as a profile has it."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        module = vae()
        latents = torch.empty(LATENTS, dtype=DTYPE)
    method = ComponentMethod(component="vae", method="decode", module=module, run=module.decode, called=None)
    execution = trace_call(method, ((latents,), {"return_dict": False}), mode, is_known=lambda tensor: False)
    return traced_call(execution, cast("Any", SimpleNamespace(layers=())), WorkList(), {}, "cuda")


@cache
def decoder() -> AutoencoderKL:
    """On the card, after a decode that took its library's workspace."""
    module = vae().requires_grad_(False).to("cuda")
    module.decode(torch.zeros(1, 16, 8, 8, dtype=DTYPE, device="cuda"))
    return module


@pytest.mark.parametrize("is_enough", [False, True])
def test_a_decode_gets_through_under_the_lowest_limit_of_its_profile_and_no_lower(is_enough: bool) -> None:
    latents = torch.zeros(LATENTS, dtype=DTYPE, device="cuda")
    workspace_bytes = live_device(torch.device("cuda")).workspace_bytes
    torch.cuda.empty_cache()
    module, least = decoder(), under_limits(traced_decode(), workspace_bytes)[0]
    torch.backends.cudnn.deterministic = is_enough  # PyTorch remembers the engines that it chose, for each of both
    # what weights leave of their segments, of which a profile knows nothing
    gaps_bytes = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    limit(least if is_enough else least - TOLERANCE_BYTES - gaps_bytes)
    if is_enough:
        for _ in "12":
            module.decode(latents)
    else:
        with pytest.raises(RuntimeError, match=r"out of memory|unable to find an engine"):
            module.decode(latents)


def test_a_convolution_is_timed_without_the_copies_that_are_priced_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds() -> float:
        run, _ = trials.convolution(4, device=torch.device("cuda"), dtype=DTYPE)
        run()
        before = counters().kernel_seconds
        run()
        return counters().kernel_seconds - before

    with_copies = seconds()
    monkeypatch.delitem(os.environ, "NULLCUDA_WORKSPACE")
    assert with_copies == pytest.approx(seconds())
