"""What is predicted by our description of a library's layers is what is predicted by the library's own, kind by kind."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
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
from torch import nn
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
from transformers import BitsAndBytesConfig as TransformersBitsAndBytesConfig
from transformers import QuantoConfig as TransformersQuantoConfig
from transformers import TorchAoConfig as TransformersTorchAoConfig

from tests.offload.state import output
from tests.quantized import pipelines as quantized_pipelines
from tests.quantized.pipelines import CALL, on_sim
from tests.reports.examples import in_memory
from tests.simgpu.prediction import RATES, predicted_call
from vramtune import catalog, profile
from vramtune.catalog import quantize
from vramtune.catalog.quantizations import QUANTIZATIONS, Quantization, find_quantizations
from vramtune.offload.install import install
from vramtune.schema import Profile
from vramtune.tuner.search import choose_plan

pytestmark = pytest.mark.quantized

BITSANDBYTES: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": torch.bfloat16},
    "int8": {"load_in_8bit": True},
}
OTHERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "torchao-int8": lambda: (TorchAoConfig(Int8WeightOnlyConfig()), TransformersTorchAoConfig(Int8WeightOnlyConfig())),
    "torchao-float8": lambda: (
        TorchAoConfig(Float8WeightOnlyConfig()),
        TransformersTorchAoConfig(Float8WeightOnlyConfig()),
    ),
    "quanto-int8": lambda: (QuantoConfig(weights_dtype="int8"), TransformersQuantoConfig(weights="int8")),
    "quanto-float8": lambda: (QuantoConfig(weights_dtype="float8"), TransformersQuantoConfig(weights="float8")),
}
"""diffusers' configuration and transformers'."""


def costs(pipe: FluxPipeline) -> Profile:
    """For CUDA's kernels."""
    return profile(pipe, gpu="RTX 4060", call_kwargs=CALL, progress=False)


def described(folder: Path, **ways: str) -> Profile:
    return costs(catalog.load(str(folder), quantize=ways))


def assert_alike(ours: Profile, theirs: Profile) -> None:
    # the described one is not loaded, so that all of it counts as in files
    assert in_memory(ours).components == in_memory(theirs).components
    assert ours.stages == theirs.stages


def test_the_folder_is_predicted_alike_without_quantization(folder: Path) -> None:
    assert_alike(described(folder), costs(FluxPipeline.from_pretrained(folder, dtype=torch.bfloat16)))


@pytest.mark.parametrize("way", BITSANDBYTES)
def test_bitsandbytes_is_described(without_gpu: None, folder: Path, way: str) -> None:
    config = PipelineQuantizationConfig(
        quant_mapping={
            "transformer": BitsAndBytesConfig(**BITSANDBYTES[way]),
            "text_encoder_2": TransformersBitsAndBytesConfig(**BITSANDBYTES[way]),
        }
    )
    pipe = FluxPipeline.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16)
    assert type(pipe.transformer.x_embedder) is not nn.Linear
    assert_alike(described(folder, transformer=way, text_encoder_2=way), costs(pipe))


@pytest.mark.filterwarnings("ignore:`Quanto(Config|Quantizer)` is deprecated:FutureWarning")
@pytest.mark.parametrize("way", OTHERS)
def test_torchao_and_quanto_are_described(without_gpu: None, folder: Path, way: str) -> None:
    ours, theirs = OTHERS[way]()
    config = PipelineQuantizationConfig(quant_mapping={"transformer": ours, "text_encoder_2": theirs})
    pipe = FluxPipeline.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16)
    assert any(type(weight) is not nn.Parameter for weight in pipe.transformer.parameters())
    assert any(type(weight) is not nn.Parameter for weight in pipe.text_encoder_2.parameters())
    assert_alike(described(folder, transformer=way, text_encoder_2=way), costs(pipe))


def test_float8_is_diffusers_own(folder: Path) -> None:
    pipe = FluxPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert_alike(described(folder, transformer="fp8"), costs(pipe))


@pytest.mark.parametrize("way", [way for way in QUANTIZATIONS if way.gguf_type], ids=lambda way: way.name)
def test_a_gguf_file_is_described(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path, way: Quantization
) -> None:
    file = tmp_path / "transformer.gguf"
    quantized_pipelines.write_gguf(quantized_pipelines.plain().transformer, file, types_of(way))
    pipe = FluxPipeline.from_pretrained(folder, transformer=None, dtype=torch.bfloat16)
    pipe.transformer = FluxTransformer2DModel.from_single_file(
        str(file),
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.bfloat16),
        dtype=torch.bfloat16,
        config=str(folder),
        subfolder="transformer",
    )
    theirs = costs(pipe)
    assert_alike(described(folder, transformer=way.name), theirs)
    monkeypatch.setattr(quantize, "_gguf_utils", without_package(quantize._gguf_utils.__wrapped__, monkeypatch))
    assert_alike(described(folder, transformer=way.name), theirs)


def types_of(way: Quantization) -> Callable[[str], gguf.GGMLQuantizationType]:
    """The type of each matrix in a file, as city96's `llama-quantize` has it."""

    def of(name: str) -> gguf.GGMLQuantizationType:
        is_projection = any(
            f".{part}." in name for part in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
        )
        is_apart = is_projection and "single" not in name
        return gguf.GGMLQuantizationType[(is_apart and way.gguf_projections) or str(way.gguf_type)]

    return of


def without_package(utils: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """diffusers' layers as where gguf is not installed."""
    monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(quantize.sys.modules, "gguf")
    module = utils()
    assert module.gguf is not gguf
    return lambda: module


def test_a_plan_made_before_the_download_is_installed(
    sim: ModuleType, without_gpu: None, no_garbage: None, folder: Path
) -> None:
    quantized_pipelines.run_on_sim()
    ways = {"transformer": "nf4", "text_encoder_2": "int8"}
    config = PipelineQuantizationConfig(
        quant_mapping={
            "transformer": BitsAndBytesConfig(**BITSANDBYTES["nf4"]),
            "text_encoder_2": TransformersBitsAndBytesConfig(**BITSANDBYTES["int8"]),
        }
    )
    pipe, twin = (
        FluxPipeline.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16) for _ in range(2)
    )
    for each in (pipe, twin):
        each.set_progress_bar_config(disable=True)
    sim.set_rates(**RATES)
    expected, costs = output(on_sim(twin), "flux"), predicted_call(catalog.load(str(folder), quantize=ways), CALL)
    weight_bytes = sum(component.used_bytes for component in costs.components)
    peak_bytes = choose_plan(costs, costs.device.usable_bytes).estimate.peak_bytes
    plan = choose_plan(costs, peak_bytes - int(0.4 * weight_bytes))
    with install(pipe, plan, device="sim") as runtime:
        assert torch.equal(output(pipe, "flux"), expected)
        assert runtime.measured is not None
        assert runtime.measured.peak_bytes == pytest.approx(plan.estimate.peak_bytes, rel=0.01)


def test_sizes_of_gguf_blocks_are_the_packages() -> None:
    theirs = {kind.name: sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {name: theirs[name] for name in quantize.GGUF_BLOCKS} == quantize.GGUF_BLOCKS


def test_every_way_is_compared_here() -> None:
    compared = {*BITSANDBYTES, *OTHERS, "fp8", *(way.name for way in QUANTIZATIONS if way.gguf_type)}
    assert compared == set(catalog.quantization_names())
    assert find_quantizations({"transformer": "NF4"})["transformer"].name == "nf4"
