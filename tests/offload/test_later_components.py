"""Components exchanged or put in after tuning: the next call is right, and within the plan's memory."""

from functools import cache
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import nn
from transformers import CLIPConfig

from tests.classes.families import FAMILIES
from tests.classes.families.parts import clip_image_processor
from tests.offload.tuned_pipelines import held_bytes
from tests.simgpu.prediction import RATES, sim_device
from vramtune.contract import modules_of
from vramtune.offload.install import install
from vramtune.predict import predict_profile
from vramtune.schema import Plan
from vramtune.tuner.search import choose_plan

pytestmark = pytest.mark.usefixtures("no_garbage")
REST_BYTES = 64 << 10
"""What the pipelines' own lines hold more or less than predicted."""
FAMILY = FAMILIES["controlnet"]


@cache
def planned(fraction: float) -> Plan:
    """The plan for what takes all, less this fraction of the weights."""
    profile = predict_profile(FAMILY.pipe(), call_kwargs=FAMILY.inputs(), device=sim_device())
    peak_bytes = choose_plan(profile, profile.device.usable_bytes).estimate.peak_bytes
    return choose_plan(profile, peak_bytes - int((1 - fraction) * sum(c.used_bytes for c in profile.components)))


def output(pipe: Any) -> torch.Tensor:
    image = pipe(**FAMILY.inputs("sim"))[0].cpu()
    pipe.scheduler.timesteps = pipe.scheduler.timesteps.cpu()
    return image


def changed(module: nn.Module) -> Any:
    """The module with other weights."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.5).add_(0.01)
    return module


def weight_bytes(module: nn.Module | None) -> int:
    return sum(parameter.nbytes for parameter in module.parameters()) if module is not None else 0


def another_controlnet(pipe: Any) -> None:
    pipe.controlnet = changed(FAMILY.pipe().controlnet)


def a_larger_controlnet(pipe: Any) -> None:
    config = dict(FAMILY.pipe().controlnet.config) | {"conditioning_embedding_out_channels": (16, 32)}
    torch.manual_seed(3)
    pipe.controlnet = changed(ControlNetModel.from_config(config)).eval()


def two_controlnets(pipe: Any) -> None:
    """A list becomes one component with two inside."""
    pipe.controlnet = MultiControlNetModel([pipe.controlnet, changed(FAMILY.pipe().controlnet)])


def a_safety_checker(pipe: Any) -> None:
    config = CLIPConfig(
        vision_config={"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"image_size": 32, "patch_size": 16},
        projection_dim=32,
    )
    torch.manual_seed(3)
    pipe.safety_checker = StableDiffusionSafetyChecker(config).eval()
    pipe.feature_extractor = clip_image_processor()


CHANGES = [another_controlnet, a_larger_controlnet, a_safety_checker]


@pytest.mark.parametrize("fraction", [0.5, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_comes_in_later_is_taken_in_at_the_next_call(sim: ModuleType, change: Any, fraction: float) -> None:
    sim.set_rates(**RATES)
    untuned = FAMILY.pipe()
    change(untuned)
    expected = output(untuned.to("sim"))
    del untuned
    start, pipe = held_bytes(), FAMILY.pipe()
    with install(pipe, planned(fraction), device="sim") as runtime:
        output(pipe)
        rest = held_bytes()
        old = dict(modules_of(pipe))
        change(pipe)
        staying = weight_bytes(pipe.safety_checker)  # as the pipeline excludes it from offloading
        largest = max(s.kept_bytes + s.slot_bytes for s in planned(fraction).estimate.stages)
        for _ in range(2):
            assert torch.equal(output(pipe), expected)
            assert held_bytes() <= (max(rest, largest) if staying else rest)
            assert runtime.measured.num_out_of_memory == 0
            assert runtime.measured.peak_bytes - start <= planned(fraction).estimate.peak_bytes + REST_BYTES
        left = [module for name, module in old.items() if module is not pipe.components[name]]
        assert {p.device.type for module in left for p in module.parameters()} <= {"cpu"}
    assert held_bytes() == start
    assert {p.device.type for module in modules_of(pipe).values() for p in module.parameters()} == {"cpu"}
    assert torch.equal(output(pipe.to("sim")), expected)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_out_of_memory_as_it_comes_in_leaves_a_pipeline_that_works(
    sim: ModuleType, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    untuned = FAMILY.pipe()
    change(untuned)
    expected = output(untuned.to("sim"))
    del untuned
    start, pipe = held_bytes(), FAMILY.pipe()
    with install(pipe, planned(1.0), device="sim"):
        output(pipe)
        change(pipe)
        sim.set_capacity(start + 1)
        with pytest.raises(torch.OutOfMemoryError):
            output(pipe)
        sim.set_capacity(sim.DEFAULT_CAPACITY_BYTES)
        assert torch.equal(output(pipe), expected)
    assert held_bytes() == start


@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_a_second_controlnet_beside_the_first_and_back(sim: ModuleType, fraction: float) -> None:
    """The new component has the old one in it, which is under the plan."""
    twice = {"image": [FAMILY.inputs("sim")["image"]] * 2, "controlnet_conditioning_scale": [1.0, 0.5]}

    def call(pipe: Any) -> torch.Tensor:
        image = pipe(**FAMILY.inputs("sim") | twice)[0].cpu()
        pipe.scheduler.timesteps = pipe.scheduler.timesteps.cpu()
        return image

    sim.set_rates(**RATES)
    untuned = FAMILY.pipe()
    two_controlnets(untuned)
    expected_of_two, expected = call(untuned.to("sim")), output(FAMILY.pipe().to("sim"))
    del untuned
    start, pipe = held_bytes(), FAMILY.pipe()
    with install(pipe, planned(fraction), device="sim"):
        assert torch.equal(output(pipe), expected)
        rest = held_bytes()
        for _ in range(2):
            two_controlnets(pipe)
            assert torch.equal(call(pipe), expected_of_two)
            assert held_bytes() <= rest
            pipe.controlnet = pipe.controlnet.nets[0]
            assert torch.equal(output(pipe), expected)
            assert held_bytes() <= rest
    assert held_bytes() == start
    assert {p.device.type for module in modules_of(pipe).values() for p in module.parameters()} == {"cpu"}
