"""Weights as people have them: each library's and kind's under a plan gives the same bits, within the budget, and comes back."""

import functools
import gc
import io
from types import ModuleType

import bitsandbytes
import pytest
import torch
from diffusers import FluxPipeline
from torch import nn

from tests import quantized_pipelines, tiny_pipelines
from tests.offload.state import output, state_of
from tests.offload.tuned_pipelines import held_bytes
from tests.quantized_pipelines import KINDS, build
from tests.simgpu import load
from tests.simgpu.prediction import RATES, predicted_call
from vramtune.contract import modules_of
from vramtune.errors import UsageError
from vramtune.offload.install import install
from vramtune.plain_tensors import plain_tensors, value_of
from vramtune.profiler.predict import predict_profile
from vramtune.schema import Plan, Profile
from vramtune.tuner.search import choose_plan

FRACTIONS = (1.0, 0.6, 0.3)
"""Fractions of the weights that have room."""
BITSANDBYTES = [kind for kind in KINDS if kind.startswith("bitsandbytes")]
CALL = {"prompt": "a photo of a cat", "num_inference_steps": 2, "output_type": "pt"} | tiny_pipelines.CALL["flux"]


@functools.cache
def profiled(kind: str) -> Profile:
    load().set_rates(**RATES)
    return predicted_call(build(kind), CALL)


@functools.cache
def planned(kind: str, fraction: float) -> Plan:
    profile = profiled(kind)
    weight_bytes = sum(component.used_bytes for component in profile.components)
    peak_bytes = choose_plan(profile, profile.device.usable_bytes).estimate.peak_bytes
    return choose_plan(profile, peak_bytes - int((1 - fraction) * weight_bytes))


@functools.cache
def resident(kind: str) -> torch.Tensor:
    """The output of the same pipeline all on the device, where its libraries brought it."""
    return output(on_sim(build(kind)), "flux")


def on_sim(pipe: FluxPipeline) -> FluxPipeline:
    for component in modules_of(pipe).values():
        nn.Module.to(component, "sim")
        for layer in component.modules():
            if isinstance(layer, bitsandbytes.nn.Linear8bitLt):  # whose statistics `to` leaves behind
                layer.weight.CB, layer.weight.SCB = layer.weight.data, layer.weight.SCB.to("sim")
    return pipe


def parts(pipe: FluxPipeline) -> dict[str, tuple[type, torch.Tensor]]:
    """The class of each weight, and a copy of each plain tensor that it consists of."""
    return {
        f"{component}.{path}.{name}.{plain.path}": (type(weight), value_of(plain.tensor).cpu().clone())
        for component, module in modules_of(pipe).items()
        for path, owner in module.named_modules()
        for name, weight in (*owner._parameters.items(), *owner._buffers.items())
        if weight is not None
        for plain in plain_tensors(weight, owner)
    }


def are_alike(one: dict[str, tuple[type, torch.Tensor]], other: dict[str, tuple[type, torch.Tensor]]) -> bool:
    def same(path: str) -> bool:
        (kind, value), (other_kind, other_value) = one[path], other[path]
        bits, other_bits = value.contiguous().view(-1), other_value.contiguous().view(-1)
        return (
            kind is other_kind
            and (value.dtype, value.stride()) == (other_value.dtype, other_value.stride())
            and torch.equal(bits.view(torch.uint8), other_bits.view(torch.uint8))
        )

    return one.keys() == other.keys() and all(map(same, one))


def devices(pipe: FluxPipeline) -> set[str]:
    weights = [w for module in modules_of(pipe).values() for w in (*module.parameters(), *module.buffers())]
    inner = [
        plain.tensor
        for module in modules_of(pipe).values()
        for owner in module.modules()
        for weight in owner._parameters.values()
        if weight is not None
        for plain in plain_tensors(weight, owner)
    ]
    return {tensor.device.type for tensor in (*weights, *inner)}


# ---------------------------------------------------------------------------------------------------
# Quantized, then tuned


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_pipeline_gives_the_same_bits_within_its_budget_and_comes_back(
    sim: ModuleType, no_garbage: None, kind: str, fraction: float
) -> None:
    expected, plan, pipe = resident(kind), planned(kind, fraction), build(kind)
    state, before, base = state_of(pipe), parts(pipe), held_bytes()
    sim.set_capacity(base + plan.budget_bytes)
    with install(pipe, plan, device="sim") as runtime:
        tiny_pipelines.run(pipe, "flux")
        sim.synchronize()
        sim.reset()
        result = tiny_pipelines.run(pipe, "flux")
        sim.synchronize()
        counters = sim.counters()
        measured = runtime.measured
    assert torch.equal(result.cpu(), expected)
    assert measured is not None
    assert measured.num_out_of_memory == 0
    assert measured.peak_bytes <= plan.budget_bytes
    assert measured.peak_bytes == pytest.approx(plan.estimate.peak_bytes, rel=0.01)
    assert measured.moved_bytes == plan.estimate.moved_bytes
    assert counters.moved_back_bytes == 0
    del result
    pipe.scheduler = None  # which keeps timesteps there
    assert held_bytes() == base
    pipe.scheduler = build(kind).scheduler
    assert are_alike(parts(pipe), before)
    after = state_of(pipe)
    assert after["class"] is state["class"]
    assert after["weights"] == state["weights"]
    assert after["modules"] == state["modules"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_a_quantized_pipeline_are_those_of_what_its_weights_consist_of(kind: str) -> None:
    pipe, profile = build(kind), profiled(kind)
    for name, component in modules_of(pipe).items():
        sizes = {
            id(plain.tensor): value_of(plain.tensor).nbytes
            for owner in component.modules()
            for weight in (*owner._parameters.values(), *owner._buffers.values())
            if weight is not None
            for plain in plain_tensors(weight, owner)
            if plain.path.split(".")[-1] != "code"  # a table of bitsandbytes' that weights share: each gets its own
        }
        planned_for = profile.component(name)
        num_bytes = planned_for.parameters.num_bytes + planned_for.buffers.num_bytes
        tables = sum(sizes.values()) if kind not in BITSANDBYTES or name != "transformer" else None
        assert num_bytes == tables or (tables is None and num_bytes >= sum(sizes.values()))


# ---------------------------------------------------------------------------------------------------
# Tuned, then quantized


@pytest.mark.parametrize("fraction", [1.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_tuned_pipeline_that_is_quantized_gives_the_same_bits_and_holds_no_more(
    sim: ModuleType, no_garbage: None, kind: str, fraction: float
) -> None:
    expected, plan, pipe = resident(kind), planned("none", fraction), quantized_pipelines.plain()
    base = held_bytes()
    sim.set_capacity(base + plan.budget_bytes)
    with install(pipe, plan, device="sim"):
        output(pipe, "flux")
        at_rest = held_bytes()
        KINDS[kind](pipe)
        for _ in range(2):
            assert torch.equal(output(pipe, "flux"), expected)
        assert held_bytes() <= at_rest
    assert held_bytes() == base
    assert devices(pipe) == {"cpu"}


# ---------------------------------------------------------------------------------------------------
# Saved, loaded, edited


def loaded(kind: str, state: dict[str, torch.Tensor]) -> FluxPipeline:
    """A pipeline of the same kind whose transformer had no values before it loaded these."""
    pipe = build(kind)
    for owner in pipe.transformer.modules():
        for weight in owner._parameters.values():
            if weight is not None:
                for plain in plain_tensors(weight, owner):
                    if not plain.path.endswith("code"):
                        value = value_of(plain.tensor)
                        value.copy_(torch.zeros(value.shape).to(value.dtype))
    if "4" in kind.partition(" ")[2] and kind in BITSANDBYTES:
        for path, layer in pipe.transformer.named_modules():
            if isinstance(layer, bitsandbytes.nn.Linear4bit):
                statistics = {k: state.pop(k) for k in [*state] if k.startswith(f"{path}.weight.")}
                statistics = {k.removeprefix(f"{path}.weight."): value for k, value in statistics.items()}
                layer.weight = bitsandbytes.nn.Params4bit.from_prequantized(
                    state[f"{path}.weight"], statistics, device="cpu", module=layer
                )
    pipe.transformer.load_state_dict(state)
    return pipe


@pytest.mark.parametrize("kind", KINDS)
def test_a_tuned_quantized_pipeline_is_saved_and_loaded_again(sim: ModuleType, no_garbage: None, kind: str) -> None:
    pipe = build(kind)
    with install(pipe, planned(kind, 0.6), device="sim"):
        output(pipe, "flux")
        file = io.BytesIO()
        # of a GGUF parameter its bytes: diffusers' class cannot be pickled
        state = {name: getattr(value, "as_tensor", lambda v=value: v)() for name, value in pipe.transformer.state_dict().items()}
        torch.save({name: value.cpu() for name, value in state.items()}, file)
    file.seek(0)
    again = loaded(kind, torch.load(file, weights_only=False, map_location="cpu"))
    assert torch.equal(output(on_sim(again), "flux"), resident(kind))
