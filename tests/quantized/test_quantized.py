"""Weights as people have them: each library's and kind's under a plan gives the same bits, within the budget, and comes back."""

import functools
import io
from pathlib import Path
from types import ModuleType
from typing import Any

import bitsandbytes
import pytest
import torch
from diffusers import (
    BitsAndBytesConfig,
    FluxPipeline,
    FluxTransformer2DModel,
    GGUFQuantizationConfig,
    PipelineQuantizationConfig,
    QuantoConfig,
    TorchAoConfig,
)
from peft import LoraConfig
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig

from tests import tiny_pipelines
from tests.offload.state import output, same, state_of, values
from tests.offload.tuned_pipelines import held_bytes
from tests.quantized import pipelines as quantized_pipelines
from tests.quantized.pipelines import CALL, KINDS, Size, bring_timesteps_back, build, on_sim
from tests.simgpu import load
from tests.simgpu.prediction import RATES, predicted_call
from vramtune.contract import modules_of
from vramtune.errors import TraceError, UsageError
from vramtune.offload.install import install
from vramtune.plain_tensors import plain_tensors, value_of
from vramtune.predict import predict_profile
from vramtune.schema import Plan, Profile
from vramtune.tuner.search import choose_plan

pytestmark = pytest.mark.quantized

FRACTIONS = (1.0, 0.6, 0.3)
"""Fractions of the weights that have room."""
MAKES_TABLES = {"gguf Q4_0", "gguf Q4_K", "gguf Q6_K"}
"""Of numbers, in each layer: the first call finds out which, and waits for each of them once."""
EACH_KIND = list(KINDS)
BITSANDBYTES = [kind for kind in KINDS if kind.startswith("bitsandbytes")]


@functools.cache
def profiled(kind: str, size: Size = "small") -> Profile:
    load().set_rates(**RATES)
    return predicted_call(build(kind, size), CALL)


@functools.cache
def planned(kind: str, fraction: float, size: Size = "small") -> Plan:
    profile = profiled(kind, size)
    weight_bytes = sum(component.used_bytes for component in profile.components)
    peak_bytes = choose_plan(profile, profile.device.usable_bytes).estimate.peak_bytes
    return choose_plan(profile, peak_bytes - int((1 - fraction) * weight_bytes))


@functools.cache
def resident(kind: str, size: Size = "small") -> torch.Tensor:
    """The output of the same pipeline all on the device, where its libraries brought it."""
    return output(on_sim(build(kind, size)), "flux")


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
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.xdist_group(kind)) for kind in KINDS])
@pytest.mark.parametrize("size", ["small", pytest.param("large", marks=pytest.mark.slow)])
def test_a_quantized_pipeline_gives_the_same_bits_within_its_budget_and_comes_back(
    sim: ModuleType, no_garbage: None, size: Size, kind: str, fraction: float
) -> None:
    expected, plan, pipe = resident(kind, size), planned(kind, fraction, size), build(kind, size)
    state, before, base = state_of(pipe), parts(pipe), held_bytes()
    sim.set_rates(**RATES)
    sim.set_capacity(base + plan.budget_bytes)
    with install(pipe, plan, device="sim") as runtime:
        if kind in MAKES_TABLES:
            tiny_pipelines.run(pipe, "flux")
            bring_timesteps_back(pipe)
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
    assert measured.seconds == pytest.approx(plan.estimate.seconds, rel=0.02)
    assert counters.moved_back_bytes == 0
    del result
    bring_timesteps_back(pipe)
    assert held_bytes() == base
    assert are_alike(parts(pipe), before)
    assert {**state_of(pipe), "attributes": None} == {**state, "attributes": None}


@pytest.mark.parametrize("kind", EACH_KIND)
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


def with_adapter(kind: str) -> FluxPipeline:
    pipe = build(kind)
    torch.manual_seed(5)
    pipe.transformer.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    for name, weight in pipe.transformer.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape).to(torch.bfloat16) * 0.05
        weight.requires_grad_(False)
    return pipe


@pytest.mark.parametrize("kind", ["bitsandbytes nf4", "gguf Q4_K"])
def test_an_adapter_on_quantized_layers_is_planned_with_them(sim: ModuleType, no_garbage: None, kind: str) -> None:
    sim.set_rates(**RATES)
    expected, profile = output(on_sim(with_adapter(kind)), "flux"), predicted_call(with_adapter(kind), CALL)
    assert not torch.equal(expected, resident(kind))
    weight_bytes = sum(component.used_bytes for component in profile.components)
    peak_bytes = choose_plan(profile, profile.device.usable_bytes).estimate.peak_bytes
    pipe, plan = with_adapter(kind), choose_plan(profile, peak_bytes - int(0.4 * weight_bytes))
    with install(pipe, plan, device="sim") as runtime:
        assert torch.equal(output(pipe, "flux"), expected)
        assert runtime.measured is not None
        assert runtime.measured.peak_bytes == plan.estimate.peak_bytes <= plan.budget_bytes


# ---------------------------------------------------------------------------------------------------
# Tuned, then quantized


@pytest.mark.parametrize("fraction", [0.4, 1.0])  # with less, torchao's float8 finds no room for a layer's copy
@pytest.mark.parametrize("kind", EACH_KIND)
def test_a_tuned_pipeline_that_is_quantized_gives_the_same_bits_and_holds_no_more(
    sim: ModuleType, no_garbage: None, kind: str, fraction: float
) -> None:
    expected, plan, pipe = resident(kind), planned("none", fraction), quantized_pipelines.plain()
    base = held_bytes()
    with install(pipe, plan, device="sim"):
        output(pipe, "flux")
        at_rest = held_bytes()
        KINDS[kind](pipe)
        sim.set_capacity(base + plan.budget_bytes)  # quantizing itself takes as much as it likes
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


@pytest.mark.parametrize("kind", EACH_KIND)
def test_a_tuned_quantized_pipeline_is_saved_and_loaded_again(sim: ModuleType, no_garbage: None, kind: str) -> None:
    pipe = build(kind)
    with install(pipe, planned(kind, 0.6), device="sim"):
        output(pipe, "flux")
        file = io.BytesIO()
        # of a GGUF parameter its bytes: diffusers' class cannot be pickled
        state = {
            name: getattr(value, "as_tensor", lambda v=value: v)()
            for name, value in pipe.transformer.state_dict().items()
        }
        torch.save({name: value.cpu() for name, value in state.items()}, file)
    file.seek(0)
    again = loaded(kind, torch.load(file, weights_only=False, map_location="cpu"))
    assert torch.equal(output(on_sim(again), "flux"), resident(kind))


@pytest.mark.parametrize("kind", ["torchao int8", "quanto int4", "bitsandbytes nf4", "gguf Q4_K"])
@pytest.mark.parametrize("moving", [True, False])
def test_what_is_written_into_a_part_of_a_weight_reaches_the_next_call(
    sim: ModuleType, no_garbage: None, kind: str, moving: bool
) -> None:
    plan, pipe, twin = planned(kind, 0.6), build(kind), build(kind)
    placement = next(p for p in plan.placements if p.component == "transformer")
    kept = min(placement.kept)
    groups = placement.groups[kept:] if moving else placement.groups[1:kept]
    path = next(p for g in groups for p in g.modules for p in quantized_layers(pipe, p))

    def edit(pipe: FluxPipeline) -> None:
        layer = pipe.transformer.get_submodule(path)
        for plain in plain_tensors(layer.weight, layer):
            if plain.tensor.dtype in (torch.uint8, torch.int8) and not plain.path.startswith("quant_state"):
                with torch._C.DisableTorchFunctionSubclass():
                    plain.tensor.zero_()

    edit(twin)
    expected = output(on_sim(twin), "flux")
    with install(pipe, plan, device="sim"):
        before = output(pipe, "flux")
        edit(pipe)
        after = output(pipe, "flux")
    assert torch.equal(after, expected)
    assert not torch.equal(before, after)


def quantized_layers(pipe: FluxPipeline, path: str) -> list[str]:
    module = pipe.transformer.get_submodule(path)
    return [
        ".".join(filter(None, (path, name)))
        for name, layer in module.named_modules()
        if type(getattr(layer, "weight", None)) not in (nn.Parameter, type(None))
    ]


# ---------------------------------------------------------------------------------------------------
# Loaded by diffusers

CONFIGS = {
    "bitsandbytes 4 bit": lambda: PipelineQuantizationConfig(
        quant_backend="bitsandbytes_4bit",
        quant_kwargs={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16},
        components_to_quantize=["transformer", "text_encoder_2"],
    ),
    "bitsandbytes 8 bit": lambda: PipelineQuantizationConfig(
        quant_mapping={"transformer": BitsAndBytesConfig(load_in_8bit=True)}
    ),
    "torchao": lambda: PipelineQuantizationConfig(quant_mapping={"transformer": TorchAoConfig(Int8WeightOnlyConfig())}),
    "quanto": lambda: PipelineQuantizationConfig(quant_mapping={"transformer": QuantoConfig(weights_dtype="int8")}),
}


def tuned_like_resident(sim: ModuleType, pipe: FluxPipeline, twin: FluxPipeline) -> None:
    """A plan for 60% of the weights gives what the twin does on the device."""
    sim.set_rates(**RATES)
    expected, profile = output(on_sim(twin), "flux"), predicted_call(pipe, CALL)
    peak_bytes = choose_plan(profile, profile.device.usable_bytes).estimate.peak_bytes
    weight_bytes = sum(component.used_bytes for component in profile.components)
    plan, before = choose_plan(profile, peak_bytes - int(0.4 * weight_bytes)), parts(pipe)
    with install(pipe, plan, device="sim") as runtime:
        assert torch.equal(output(pipe, "flux"), expected)
        assert runtime.measured is not None
        assert runtime.measured.peak_bytes <= plan.budget_bytes
    assert are_alike(parts(pipe), before)


@pytest.mark.filterwarnings("ignore:`Quanto(Config|Quantizer)` is deprecated:FutureWarning")
@pytest.mark.parametrize("library", CONFIGS)
def test_a_pipeline_that_diffusers_quantized_as_it_loaded_it_is_tuned(
    sim: ModuleType, no_garbage: None, without_gpu: None, folder: Path, library: str
) -> None:
    quantized_pipelines.run_on_sim()
    pipe, twin = (
        FluxPipeline.from_pretrained(folder, quantization_config=CONFIGS[library](), dtype=torch.bfloat16)
        for _ in range(2)
    )
    for each in (pipe, twin):
        each.set_progress_bar_config(disable=True)
    assert any(type(w) is not nn.Parameter for w in pipe.transformer.parameters())
    tuned_like_resident(sim, pipe, twin)


def test_a_gguf_file_is_loaded_and_tuned(sim: ModuleType, no_garbage: None, folder: Path) -> None:
    file = folder / "transformer.gguf"
    quantized_pipelines.write_gguf(quantized_pipelines.plain().transformer, file)
    pipe, twin = quantized_pipelines.plain(), quantized_pipelines.plain()
    for each in (pipe, twin):
        each.transformer = FluxTransformer2DModel.from_single_file(
            str(file),
            quantization_config=GGUFQuantizationConfig(compute_dtype=torch.bfloat16),
            dtype=torch.bfloat16,
            config=str(folder),
            subfolder="transformer",
        )
    assert any(type(w).__name__ == "GGUFParameter" for w in pipe.transformer.parameters())
    tuned_like_resident(sim, pipe, twin)


# ---------------------------------------------------------------------------------------------------
# Refused


class Packed(nn.Parameter):
    pass


def unknown_class(pipe: FluxPipeline) -> None:
    pipe.transformer.proj_out.bias = Packed(pipe.transformer.proj_out.bias.detach())


def not_quantized(pipe: FluxPipeline) -> None:
    pipe.transformer.proj_out = bitsandbytes.nn.Linear4bit(256, 4)


def has_16_bits(pipe: FluxPipeline) -> None:
    pipe.transformer.proj_out = bitsandbytes.nn.Linear8bitLt(256, 4)


def packed_for_the_cpu(pipe: FluxPipeline) -> None:
    KINDS["bitsandbytes nf4"](pipe)
    layer = next(m for m in pipe.transformer.modules() if isinstance(m, bitsandbytes.nn.Linear4bit))
    layer.weight.quant_state.packing_format_for_cpu = True


def packed_by_quanto(pipe: FluxPipeline) -> None:
    quantized_pipelines.packed_by_quanto(pipe.transformer)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (unknown_class, r"'proj_out\.bias' of component 'transformer' is a Packed.*load the component unquantized"),
        (not_quantized, r"'proj_out\.weight' .* is not quantized yet.*Move the component once"),
        (has_16_bits, r"'proj_out\.weight' .* is not quantized yet"),
        (packed_for_the_cpu, r"was packed for the CPU by a call there\. Call the component's state_dict\(\) once"),
        (packed_by_quanto, r"is a TinyGemmWeightQBitsTensor, packed for one device's kernels.*weight_qbits_tensor"),
    ],
)
def test_what_cannot_be_moved_is_refused_by_name_before_anything_is_touched(
    sim: ModuleType, edit: Any, match: str
) -> None:
    pipe, plan, device = quantized_pipelines.plain(), planned("none", 0.6), profiled("none").device
    edit(pipe)
    state = state_of(pipe)
    base = held_bytes()
    with pytest.raises(UsageError, match=match):
        predict_profile(pipe, call_kwargs=CALL, device=device)
    with pytest.raises(UsageError, match=match):
        install(pipe, plan, device="sim")
    assert state_of(pipe) == state
    assert held_bytes() == base


class OwnProduct(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.vramtune_tests.product(x, self.weight)


def test_an_operation_that_does_not_say_what_its_result_looks_like_is_named() -> None:
    torch.library.define("vramtune_tests::product", "(Tensor x, Tensor weight) -> Tensor")
    torch.library.impl("vramtune_tests::product", "CPU", lambda x, weight: x @ weight.t())
    pipe = quantized_pipelines.plain()
    pipe.transformer.proj_out = OwnProduct(256, 4, bias=False).to(torch.bfloat16)
    with pytest.raises(TraceError, match=r"vramtune_tests\.product\.default in its module 'proj_out'.*register_fake"):
        predict_profile(pipe, call_kwargs=CALL, device=profiled("none").device)


def test_a_component_that_only_says_that_it_is_quantized_is_tuned(sim: ModuleType) -> None:
    """By its weights it is told whether it can be: libraries differ in what they set."""
    pipe = quantized_pipelines.plain()
    pipe.transformer.quantization_method = "by hand"
    before = values(pipe)
    with install(pipe, planned("none", 0.6), device="sim"):
        assert torch.equal(output(pipe, "flux"), resident("none"))
    assert same(values(pipe), before)
