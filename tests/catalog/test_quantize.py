"""Quantized before anything is downloaded: what the weights take, which layers it is, and what is refused.

That it is what the libraries' own weights take is proven in `tests/quantized/test_described.py`, which needs them.
"""

from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import nn

from tests import tiny_pipelines
from vramtune import catalog, profile, trace
from vramtune.catalog.quantizations import QUANTIZATIONS
from vramtune.catalog.quantize import quantize_components
from vramtune.contract import modules_of
from vramtune.errors import UnknownNameError, UsageError
from vramtune.plain_tensors import plain_tensors, value_of
from vramtune.schema import Profile, Segment

WIDTH, TOKENS = 256, 4
BITS = {
    "nf4": 4.5,  # 4 bits, and a float32 for 64
    "fp4": 4.5,
    "int8": 8,
    "torchao-int8": 8,
    "torchao-float8": 8,
    "quanto-int8": 8,
    "quanto-float8": 8,
    "fp8": 8,
    "gguf-q8_0": 8.5,
    "gguf-q6_k": 6.5625,
    "gguf-q5_k_m": 5.5,
    "gguf-q5_k_s": 5.5,
    "gguf-q5_1": 6,
    "gguf-q5_0": 5.5,
    "gguf-q4_k_m": 4.5,
    "gguf-q4_k_s": 4.5,
    "gguf-q4_1": 5,
    "gguf-q4_0": 4.5,
    "gguf-q3_k_m": 3.4375,
    "gguf-q3_k_s": 3.4375,
    "gguf-q2_k": 2.625,
}
BITS_A_ROW = {"int8": 32, "torchao-int8": 40, "torchao-float8": 32, "quanto-int8": 16, "quanto-float8": 16}
"""Of scales, and of torchao's zero points."""
MLP = "transformer_blocks.0.ff.net.2"
TO_Q = "transformer_blocks.0.attn.to_q"


def pipeline() -> FluxPipeline:
    """Of tiny FLUX.1 with rows of 256, on the meta device."""
    pipe = tiny_pipelines.build("flux")
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=64,
            num_attention_heads=4,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(16, 24, 24),
        )
    pipe.register_modules(transformer=transformer.eval().to(torch.bfloat16))
    for component in modules_of(pipe).values():
        nn.Module.to(component, torch.bfloat16)
    return pipe


def quantized(**ways: str) -> FluxPipeline:
    pipe = pipeline()
    quantize_components(pipe, ways)
    return pipe


def costs(pipe: FluxPipeline) -> Profile:
    call = {"prompt": "a cat", "num_inference_steps": 2} | tiny_pipelines.CALL["flux"]
    return profile(pipe, gpu="RTX 4060", call_kwargs=call, progress=False)


def layer_bytes(pipe: FluxPipeline, path: str) -> int:
    layer = pipe.transformer.get_submodule(path)
    weights = layer.parameters()
    return sum(value_of(plain.tensor).nbytes for weight in weights for plain in plain_tensors(weight, layer))


@pytest.mark.parametrize("way", [way.name for way in QUANTIZATIONS])
def test_a_quantized_layer_takes_its_bits(way: str) -> None:
    pipe = quantized(transformer=way)
    rows, columns = WIDTH, 4 * WIDTH
    bits = BITS[way] + BITS_A_ROW.get(way, 0) / columns
    bias_bytes = rows * (1 if way == "fp8" else 2)
    table_bytes = 16 * 4 if way in ("nf4", "fp4") else 0
    assert layer_bytes(pipe, MLP) == rows * columns * bits / 8 + bias_bytes + table_bytes


def test_projections_have_more_bits_in_a_mix_of_types() -> None:
    mixed, plain, more = (quantized(transformer=f"gguf-{way}") for way in ("q4_k_m", "q4_k_s", "q5_k_s"))
    assert layer_bytes(mixed, TO_Q) == layer_bytes(more, TO_Q) > layer_bytes(plain, TO_Q)
    joined = "single_transformer_blocks.0.attn.to_q"
    assert layer_bytes(mixed, joined) == layer_bytes(plain, joined)


@pytest.mark.parametrize(("way", "is_quantized"), [("nf4", True), ("gguf-q4_0", False)])
def test_a_file_leaves_what_is_outside_of_the_blocks(way: str, is_quantized: bool) -> None:
    pipe = quantized(transformer=way)
    assert (type(pipe.transformer.context_embedder) is not nn.Linear) is is_quantized
    assert type(pipe.transformer.transformer_blocks[0].attn.to_q) is not nn.Linear


def test_rows_of_no_whole_blocks_stay_as_they_are() -> None:
    pipe = pipeline()
    pipe.transformer.transformer_blocks[0].attn.to_q = narrow = nn.Linear(48, WIDTH, device="meta")
    quantize_components(pipe, {"transformer": "gguf-q4_k_s"})
    assert pipe.transformer.transformer_blocks[0].attn.to_q is narrow


def test_what_reads_a_wrapped_weight_sees_the_dtype_that_it_had() -> None:
    for way in ("torchao-int8", "torchao-float8", "quanto-int8", "quanto-float8"):
        layer = quantized(transformer=way).transformer.get_submodule(MLP)
        assert (layer.weight.dtype, layer.weight.shape) == (torch.bfloat16, (WIDTH, 4 * WIDTH))


def test_transformers_leaves_what_it_keeps_in_float32() -> None:
    pipe = quantized(text_encoder_2="int8")
    assert type(pipe.text_encoder_2.encoder.block[0].layer[1].DenseReluDense.wo) is nn.Linear
    assert type(pipe.text_encoder_2.encoder.block[0].layer[0].SelfAttention.q) is not nn.Linear


@pytest.mark.parametrize(
    "way", ["nf4", "int8", "torchao-int8", "torchao-float8", "quanto-int8", "quanto-float8", "fp8", "gguf-q4_k_s"]
)
def test_what_a_layer_makes_of_its_weight_is_counted_and_takes_time(way: str) -> None:
    plain, other = (mlp_segment(pipe) for pipe in (pipeline(), quantized(transformer=way)))
    assert other.layer_activation_bytes > plain.layer_activation_bytes
    assert other.layer_seconds > plain.layer_seconds


@pytest.mark.parametrize(("way", "is_chosen"), [("nf4", True), ("int8", False), ("gguf-q4_k_s", False)])
def test_which_kernels_multiply_by_four_bits_depends_on_the_card(way: str, is_chosen: bool) -> None:
    call = {"prompt": "a cat", "num_inference_steps": 2} | tiny_pipelines.CALL["flux"]
    found = trace(quantized(transformer=way), call_kwargs=call, progress=False)
    assert {each.component: each.depends_on_card for each in found.calls}["transformer"] is is_chosen
    assert not any(each.depends_on_card for each in found.calls if each.component != "transformer")


def mlp_segment(pipe: FluxPipeline) -> Segment:
    found = costs(pipe)
    (number,) = (n for n, layer in enumerate(found.component("transformer").layers) if layer.name == MLP)
    (stage,) = (stage for stage in found.stages if stage.name == "transformer")
    return next(segment for segment in stage.activities[0].segments if segment.layer == number)


@pytest.mark.parametrize(
    ("ways", "error", "match"),
    [
        ({"transformer": "nf5"}, UnknownNameError, r"Unknown quantization 'nf5'. Did you mean: .*nf4"),
        ({"unet": "nf4"}, UnknownNameError, r"Unknown component 'unet'. Known names: text_encoder, text_encoder_2, transf"),
        ({"scheduler": "nf4"}, UnknownNameError, r"Unknown component 'scheduler'"),
        ({"text_encoder_2": "gguf-q4_0"}, UsageError, r"'text_encoder_2' is a T5EncoderModel of transformers, which reads a GGUF"),
        ({"text_encoder": "fp8"}, UsageError, r"text_encoder=fp8: .* does not cast layers.*nf4, fp4, int8, torchao-int8"),
        ({"vae": "gguf-q8_0"}, UsageError, r"vae=gguf-q8_0: no layer of 'vae' would be quantized"),
    ],
)  # fmt: skip
def test_what_cannot_be_quantized_is_refused(ways: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        quantized(**ways)


def test_an_unknown_way_is_refused_before_anything_is_built() -> None:
    with pytest.raises(UnknownNameError, match="quantization"):
        catalog.load("no-such-model", quantize={"transformer": "nf5"})


def test_a_catalogs_pipeline_is_quantized() -> None:
    pipe = catalog.load("flux.1-dev", quantize={"transformer": "NF4", "text_encoder_2": "int8"})
    num_bytes = {
        name: sum(p.nbytes for p in getattr(pipe, name).parameters()) for name in ("transformer", "text_encoder_2")
    }
    assert num_bytes["transformer"] / 2**30 == pytest.approx(6.24, abs=0.01)
    assert num_bytes["text_encoder_2"] / 2**30 == pytest.approx(5.50, abs=0.01)
