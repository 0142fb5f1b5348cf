"""Ways in which a component's weights are quantized as it is loaded, by name; what they do is in `quantize.py`."""

from collections.abc import Mapping
from dataclasses import dataclass

from vramtune.errors import UnknownNameError

LARGER_PROJECTIONS = {"q5_k_m": "Q6_K", "q4_k_m": "Q5_K", "q3_k_m": "Q4_K"}
"""Mixes of types, and the one that an attention's projections have in them: as city96 quantized FLUX.1
(`tools/lcpp.patch` of ComfyUI-GGUF, `attn.qkv`). Other models' files mix them otherwise, by some percent of their size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """A way to quantize a component."""

    name: str
    title: str
    """The library, and the setting that diffusers has for it."""
    gguf_type: str | None = None
    """Name of the type of most weights in a GGUF file."""
    gguf_projections: str | None = None
    """Name of the type of an attention's projections in it, where that is another one."""


def _gguf(name: str, gguf_type: str) -> Quantization:
    return Quantization(
        name=f"gguf-{name}",
        title=f"a GGUF file in {name.upper()}, by GGUFQuantizationConfig",
        gguf_type=gguf_type,
        gguf_projections=LARGER_PROJECTIONS.get(name),
    )


QUANTIZATIONS = (
    Quantization(name="nf4", title="bitsandbytes, BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4')"),
    Quantization(name="fp4", title="bitsandbytes, BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='fp4')"),
    Quantization(name="int8", title="bitsandbytes, BitsAndBytesConfig(load_in_8bit=True)"),
    Quantization(name="torchao-int8", title="torchao, TorchAoConfig(Int8WeightOnlyConfig())"),
    Quantization(name="torchao-float8", title="torchao, TorchAoConfig(Float8WeightOnlyConfig())"),
    Quantization(name="quanto-int8", title="optimum-quanto, QuantoConfig(weights_dtype='int8')"),
    Quantization(name="quanto-float8", title="optimum-quanto, QuantoConfig(weights_dtype='float8')"),
    Quantization(name="fp8", title="diffusers' own, enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn)"),
    _gguf("q8_0", "Q8_0"),
    _gguf("q6_k", "Q6_K"),
    _gguf("q5_k_m", "Q5_K"),
    _gguf("q5_k_s", "Q5_K"),
    _gguf("q5_1", "Q5_1"),
    _gguf("q5_0", "Q5_0"),
    _gguf("q4_k_m", "Q4_K"),
    _gguf("q4_k_s", "Q4_K"),
    _gguf("q4_1", "Q4_1"),
    _gguf("q4_0", "Q4_0"),
    _gguf("q3_k_m", "Q3_K"),
    _gguf("q3_k_s", "Q3_K"),
    _gguf("q2_k", "Q2_K"),
)


def quantization_names() -> tuple[str, ...]:
    """Names of the ways to quantize a component."""
    return tuple(each.name for each in QUANTIZATIONS)


def find_quantizations(quantize: Mapping[str, str]) -> dict[str, Quantization]:
    """The way of that name, by component; case does not matter. Raises `UnknownNameError`."""
    by_name = {each.name: each for each in QUANTIZATIONS}
    for name in quantize.values():
        if name.lower() not in by_name:
            raise UnknownNameError("quantization", name, quantization_names())
    return {component: by_name[name.lower()] for component, name in quantize.items()}
