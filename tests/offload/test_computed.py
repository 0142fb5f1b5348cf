"""Weights that hooks compute from parameters: on the device for as long as their module runs, and counted so."""

import functools
import gc
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import AutoencoderOobleck

from tests.classes.families import FAMILIES
from tests.offload.tuned_pipelines import held_bytes
from tests.simgpu import load
from tests.simgpu.prediction import RATES, predicted_call
from vramtune.contract import computed_names
from vramtune.offload.install import install
from vramtune.schema import Profile
from vramtune.tuner.search import choose_plan
from vramtune.tuner.stock_modes import stock_modes

pytestmark = [
    pytest.mark.usefixtures("no_garbage"),
    pytest.mark.filterwarnings("ignore"),  # torch's and diffusers' own, that weight_norm is deprecated
]
FAMILY = FAMILIES["stable_audio"]
TOLERANCE = 0.003
NORMS = {
    "weight_norm": torch.nn.utils.weight_norm,
    "spectral_norm": torch.nn.utils.spectral_norm,
    "parametrized": torch.nn.utils.parametrizations.weight_norm,
}


def audio(norm: str) -> Any:
    """Stable Audio with a decoder whose normed convolutions are most of the pipeline's weights."""
    pipe = FAMILY.pipe()
    torch.manual_seed(0)
    vae = AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[1, 2],
        decoder_channels=64,
        decoder_input_channels=3,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )
    if norm != "weight_norm":  # which it has
        for module in [m for m in vae.modules() if computed_names(m)]:
            NORMS[norm](torch.nn.utils.remove_weight_norm(module))
    pipe.register_modules(vae=vae.eval())
    return pipe


@functools.cache
def profiled(norm: str) -> Profile:
    load().set_rates(**RATES)
    return predicted_call(audio(norm), FAMILY.inputs())


def decoded(pipe: Any) -> torch.Tensor:
    return pipe(**FAMILY.inputs())[0].cpu()


def all_computed(pipe: Any) -> list[torch.Tensor]:
    return [vars(module)[name] for module in pipe.vae.modules() for name in computed_names(module)]


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Python collects what refers to itself at moments of its own, and a peak would depend on them."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("norm", NORMS)
def test_the_peak_is_as_predicted(sim: ModuleType, no_collection: None, norm: str) -> None:
    profile = profiled(norm)
    weights = sum(component.used_bytes for component in profile.components)
    most = choose_plan(profile, profile.device.usable_bytes).estimate.peak_bytes
    expected = decoded(audio(norm))
    for fraction in (1, 0.6, 0.2):
        plan = choose_plan(profile, most - int((1 - fraction) * weights))
        pipe = audio(norm)
        before = held_bytes()
        with install(pipe, plan, device="sim") as runtime:
            for _ in range(2):
                assert torch.equal(decoded(pipe), expected)
            (peak,) = [s.peak_bytes for s in runtime.measured.stages if s.name == "vae.decode"]
            (estimate,) = [s for s in plan.estimate.stages if s.name == "vae.decode"]
            assert peak - before == pytest.approx(estimate.peak_bytes, rel=TOLERANCE)
            assert {weight.device.type for weight in all_computed(pipe)} <= {"cpu"}


def test_in_the_stock_modes_it_stays(sim: ModuleType) -> None:
    before = held_bytes()
    pipe = audio("weight_norm").to("sim")
    decoded(pipe)
    sim.reset_peak_memory_stats()
    decoded(pipe)
    (mode,) = [m for m in stock_modes(profiled("weight_norm")) if m.mode == "all resident"]
    assert sim.max_memory_allocated() - before == pytest.approx(mode.peak_bytes, rel=TOLERANCE)


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_a_removed_plan_leaves_what_was_computed_and_no_hook(sim: ModuleType, norm: str) -> None:
    pipe = audio(norm)
    before = all_computed(pipe)
    plan = choose_plan(profiled(norm), profiled(norm).device.usable_bytes)
    with install(pipe, plan, device="sim"):
        decoded(pipe)
    after = all_computed(pipe)
    assert len(before) == len(after) > 0
    assert all(map(torch.equal, before, after))
    assert not any(module._forward_hooks for module in pipe.vae.modules())


def test_it_is_let_go_where_a_call_fails(sim: ModuleType) -> None:
    pipe = audio("weight_norm")
    with install(pipe, choose_plan(profiled("weight_norm"), 2**40), device="sim"):
        last = [module for module in pipe.vae.decoder.modules() if computed_names(module)][-1]

        def fail(*_: object) -> None:
            raise RuntimeError("for the test")

        handle: Any = last.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="for the test"):
            decoded(pipe)
        handle.remove()
        assert {weight.device.type for weight in all_computed(pipe)} == {"cpu"}
