"""Denoisers' weights in float8 under a plan that is allowed it: as diffusers' own casting has them, and given back."""

import functools
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn

from tests import tiny_pipelines
from tests.offload.state import output, same, state_of, values
from tests.offload.tuned_pipelines import held_bytes
from tests.simgpu import load
from tests.simgpu.prediction import RATES, predicted_call
from vramtune.contract import is_cast_by_layers, modules_of
from vramtune.errors import BudgetError, UsageError
from vramtune.offload import float8
from vramtune.offload.install import install
from vramtune.schema import Plan, Profile
from vramtune.tuner.search import choose_plan
from vramtune.units import MIB

CALL = {"prompt": "a photo of a cat", "num_inference_steps": 2, "output_type": "pt"} | tiny_pipelines.CALL["flux"]
ALLOWED = ("fp8_weights",)


def pipeline(dtype: torch.dtype = torch.bfloat16) -> FluxPipeline:
    pipe = tiny_pipelines.build("flux")
    for component in modules_of(pipe).values():
        nn.Module.to(component, dtype)
    return pipe


def in_float8() -> FluxPipeline:
    """As diffusers does it, for good."""
    pipe = pipeline()
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    return pipe


def predicted(pipe: FluxPipeline, *, allow: tuple[str, ...] = ALLOWED) -> Profile:
    load().set_rates(**RATES)
    return predicted_call(pipe, CALL, allow=allow)


@functools.cache
def profiled() -> Profile:
    return predicted(pipeline())


def peak_bytes(profile: Profile) -> int:
    """Of a plan that keeps everything."""
    return choose_plan(profile, profile.device.usable_bytes).estimate.peak_bytes


@functools.cache
def planned(fraction: float) -> Plan:
    """For so much of the float8 weights; as if nothing but float8 were possible."""
    profile = profiled().under(ALLOWED)
    weight_bytes = sum(component.used_bytes for component in profile.components)
    plan = choose_plan(profile, peak_bytes(profile) - int((1 - fraction) * weight_bytes))
    return replace(plan, permissions=ALLOWED)


@functools.cache
def resident() -> torch.Tensor:
    return output(in_float8().to("sim"), "flux")


def test_what_is_predicted_is_what_would_be_of_weights_that_are_cast_already() -> None:
    cast = predicted(in_float8())
    assert profiled().under(ALLOWED).components == cast.components
    assert profiled().under(ALLOWED).stages == cast.stages
    assert profiled().component("transformer").dtype == "bfloat16"


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_a_call_gives_what_diffusers_casting_does_and_the_weights_come_back(
    sim: ModuleType, no_garbage: None, fraction: float
) -> None:
    expected, plan, pipe = resident(), planned(fraction), pipeline()
    state, before, base = state_of(pipe), values(pipe), held_bytes()
    sim.set_rates(**RATES)
    sim.set_capacity(base + plan.budget_bytes)
    with install(pipe, plan, device="sim") as runtime:
        assert any(w.dtype == torch.float8_e4m3fn for w in pipe.transformer.parameters())
        assert pipe.transformer.dtype == torch.bfloat16
        for _ in range(2):
            assert torch.equal(output(pipe, "flux"), expected)
        measured = runtime.measured
    assert measured is not None
    assert measured.peak_bytes == pytest.approx(plan.estimate.peak_bytes, rel=0.01)
    assert measured.moved_bytes == plan.estimate.moved_bytes
    assert same(values(pipe), before)
    assert state_of(pipe) == state
    assert not any(is_cast_by_layers(m) for m in pipe.transformer.modules())
    assert held_bytes() == base


def test_a_plan_uses_it_where_nothing_fits_without_and_says_so() -> None:
    profile = profiled()
    assert choose_plan(profile, peak_bytes(profile), allow=ALLOWED).permissions == ()
    with pytest.raises(BudgetError, match="or allow 'fp8_weights', with which") as raised:
        choose_plan(profile, MIB // 8)
    error = raised.value
    assert error.permission == "fp8_weights"
    assert error.permitted_bytes is not None
    plan = choose_plan(profile, error.permitted_bytes, allow=ALLOWED)
    assert plan.permissions == ALLOWED
    assert plan.reasons[0].num_bytes == {"smallest": error.smallest_bytes}


def test_a_plan_uses_it_where_copies_cannot_be_hidden_and_says_what_it_saves() -> None:
    profile = profiled()
    slow = replace(profile, device=replace(profile.device, pinned_copy_bytes_per_second=1e6))
    weight_bytes = sum(component.used_bytes for component in profile.components)
    budget_bytes = peak_bytes(profile) - int(0.4 * weight_bytes)
    plain, allowed = choose_plan(slow, budget_bytes), choose_plan(slow, budget_bytes, allow=ALLOWED)
    assert allowed.permissions == ALLOWED
    assert allowed.reasons[0].seconds == {"saves": pytest.approx(plain.estimate.seconds - allowed.estimate.seconds)}
    assert allowed.estimate.seconds < plain.estimate.seconds


def test_a_profile_that_does_not_know_it_says_what_to_do() -> None:
    profile = predicted(pipeline(), allow=())
    assert profile.permissions == ("vae_tiling",)
    with pytest.raises(UsageError, match=r"does not know what 'fp8_weights' would change.*allow='fp8_weights'"):
        choose_plan(profile, profile.device.usable_bytes, allow=ALLOWED)


@pytest.mark.parametrize("make", [functools.partial(pipeline, torch.float32), in_float8])
def test_it_is_for_weights_of_16_bits(make: Callable[[], FluxPipeline]) -> None:
    assert predicted(make()).variants == ()


def test_a_weight_that_was_edited_stays_edited(sim: ModuleType) -> None:
    pipe, plan = pipeline(), planned(0.5)
    before = values(pipe)
    path = "transformer_blocks.0.attn.to_q.weight"
    with install(pipe, plan, device="sim"):
        output(pipe, "flux")
        weight = pipe.transformer.get_parameter(path)
        weight.data = torch.full(weight.shape, 0.5).to(weight.dtype)
        output(pipe, "flux")
    after = values(pipe)
    assert torch.equal(after[f"transformer.{path}"], torch.full(weight.shape, 0.5, dtype=torch.bfloat16))
    assert same(
        {name: v for name, v in after.items() if path not in name}, {n: v for n, v in before.items() if path not in n}
    )


def test_a_plan_that_does_not_fit_the_pipeline_leaves_it_as_it_was(sim: ModuleType) -> None:
    pipe = pipeline()
    pipe.transformer.proj_out = nn.Linear(64, 64, dtype=torch.bfloat16)
    state, before = state_of(pipe), values(pipe)
    with pytest.raises(UsageError, match="transformer"):
        install(pipe, planned(0.5), device="sim")
    assert state_of(pipe) == state
    assert same(values(pipe), before)


@pytest.mark.parametrize("number", [0, 5, -1])
def test_an_interrupt_while_weights_are_stored_leaves_them_as_they_were(
    sim: ModuleType, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    pipe, plan = pipeline(), planned(0.5)
    state, before = state_of(pipe), values(pipe)
    cast = [path for path, module in in_float8().transformer.named_modules() if is_cast_by_layers(module)]

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipe.transformer.get_submodule(cast[number]), "to", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        install(pipe, plan, device="sim")
    monkeypatch.undo()
    assert same(values(pipe), before)
    assert {**state_of(pipe), "modules": None} == {**state, "modules": None}
    assert not any(is_cast_by_layers(m) for m in pipe.transformer.modules())


def test_what_stays_as_it_is_is_not_kept_twice(sim: ModuleType) -> None:
    pipe = pipeline()
    stored = float8.Float8Weights(pipe, planned(0.5))
    stored.apply()
    kept = {id(each.weight) for each in stored._before}
    assert kept == {id(w) for w in pipe.transformer.parameters() if w.dtype == torch.float8_e4m3fn}
    stored.undo()
    stored.undo()


# ---------------------------------------------------------------------------------------------------
# Adapters


def adapter() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    transformer = pipeline().transformer
    transformer.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k"], init_lora_weights=False))
    return {f"transformer.{path}": tensor for path, tensor in get_peft_model_state_dict(transformer).items()}


def test_an_adapter_that_is_loaded_into_float8_is_refused_until_it_is_gone(sim: ModuleType) -> None:
    pipe = pipeline()
    before = values(pipe)
    with install(pipe, planned(0.5), device="sim"):
        pipe.load_lora_weights(adapter(), adapter_name="a")
        with pytest.raises(UsageError, match=r"An adapter was loaded into a FluxTransformer2DModel.*tune again"):
            output(pipe, "flux")
        pipe.unload_lora_weights()
        assert torch.equal(output(pipe, "flux"), resident())
    assert same(values(pipe), before)


def test_an_adapter_that_was_there_before_is_left_in_16_bits(sim: ModuleType) -> None:
    def with_adapter() -> FluxPipeline:
        pipe = pipeline()
        pipe.load_lora_weights(adapter(), adapter_name="a")
        return pipe

    whole, pipe = with_adapter(), with_adapter()
    whole.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    expected = output(whole.to("sim"), "flux")
    profile = predicted(pipe)
    plan = choose_plan(profile.under(ALLOWED), int(0.9 * peak_bytes(profile.under(ALLOWED))))
    with install(pipe, replace(plan, permissions=ALLOWED), device="sim"):
        dtypes = {w.dtype for path, w in pipe.transformer.named_parameters() if "lora" in path}
        assert dtypes == {torch.bfloat16}
        assert torch.equal(output(pipe, "flux"), expected)
