"""A pipeline without weights, as it would be had a library quantized components of it when it was loaded.

Nobody needs these libraries to ask how much memory their weights take. Their layers are described (`described_layers.py`);
GGUF's and float8's are diffusers' own. `tests/quantized/test_described.py` holds what
is predicted for each against what is predicted for the library's own.
"""

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers.quantizers import gguf as diffusers_gguf
from torch import nn
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from vramtune.catalog.described_layers import LAYERS
from vramtune.catalog.quantizations import Quantization, find_quantizations
from vramtune.errors import UnknownNameError, UsageError
from vramtune.tables import let_keep_tables


def quantize_components(pipe: Any, quantize: Mapping[str, str]) -> None:
    """Exchange layers of components that are on the meta device; `quantize` has the names of ways, by component.

    Raises `UnknownNameError` for a way or a component that there is not, `UsageError` where a component cannot be
    quantized so.
    """
    components = {name: each for name, each in pipe.components.items() if isinstance(each, nn.Module)}
    for name, way in find_quantizations(quantize).items():
        if name not in components:
            raise UnknownNameError("component", name, sorted(components))
        _quantize(name, components[name], way)


def _quantize(name: str, component: nn.Module, way: Quantization) -> None:
    is_of_diffusers = isinstance(component, diffusers.ModelMixin)
    if not is_of_diffusers and (way.gguf_type is not None or way.name == "fp8"):
        why = "reads a GGUF file into 16-bit weights" if way.gguf_type is not None else "does not cast layers"
        raise UsageError(
            f"{name}={way.name}: {name!r} is a {type(component).__name__} of transformers, which {why}. For it there "
            f"are {', '.join(LAYERS)}."
        )
    if way.name == "fp8":
        component.enable_layerwise_casting(  # type: ignore[operator]
            storage_dtype=torch.float8_e4m3fn, compute_dtype=component.dtype
        )
        return
    if way.gguf_type is not None:
        layers = list(_in_gguf_file(component))
        make = _gguf_layers(way)
    else:
        layers = list(_quantized_linears(component, way, is_of_diffusers=is_of_diffusers))
        make = _described(way)
    made = {path: (layer, make(path, layer)) for path, layer in layers}
    if all(new is old for old, new in made.values()):
        raise UsageError(f"{name}={way.name}: no layer of {name!r} would be quantized by it. Leave it out.")
    for path, (old, new) in made.items():
        component.set_submodule(path, new)
        if is_of_diffusers:  # which casts the scales of activations too
            for buffer in new.buffers():
                buffer.data = buffer.to(old.weight.dtype)


def _quantized_linears(component: Any, way: Quantization, *, is_of_diffusers: bool) -> Iterator[tuple[str, nn.Linear]]:
    """The layers that a library takes, by path: all linear ones but those that it is told to leave as they are.

    `_replace_with_bnb_linear` in `diffusers/quantizers/bitsandbytes/utils.py`, `check_if_quantized_param` in
    `diffusers/quantizers/torchao/torchao_quantizer.py`, `_replace_with_quanto_layers` in
    `diffusers/quantizers/quanto/utils.py`, which looks at the last name only; `get_modules_to_not_convert` in
    `transformers/quantizers/base.py`.
    """
    kept = list(component._keep_in_fp32_modules or ())
    if not is_of_diffusers:
        kept += get_keys_to_not_convert(component)
    for path, layer in list(component.named_modules()):
        if not is_of_diffusers:
            asked = f"{path}.weight" if way.name.startswith("torchao-") else path  # by which less is kept
            is_kept = not should_convert_module(asked, kept)
        else:
            is_kept = path.rpartition(".")[2] in kept
            if not way.name.startswith("quanto-"):
                is_kept |= any(f"{key}." in path or key == path for key in kept)
        if type(layer) is nn.Linear and not is_kept:
            yield path, layer


def _described(way: Quantization) -> Callable[[str, nn.Linear], nn.Module]:
    return lambda path, layer: LAYERS[way.name](layer)


# ---------------------------------------------------------------------------------------------------
# GGUF

GGUF_BLOCKS = {
    "Q8_0": (32, 34),
    "Q6_K": (256, 210),
    "Q5_K": (256, 176),
    "Q5_1": (32, 24),
    "Q5_0": (32, 22),
    "Q4_K": (256, 144),
    "Q4_1": (32, 20),
    "Q4_0": (32, 18),
    "Q3_K": (256, 110),
    "Q2_K": (256, 84),
}
"""Numbers in a block, and its bytes, by type: `GGML_QUANT_SIZES` in `gguf/constants.py`."""
PROJECTION = re.compile(r"\.(to_[qkv]|add_[qkv]_proj)$")
JOINED_WITH_MLP = "single_transformer_blocks."
"""Blocks of FLUX.1 whose projections and MLP are one matrix in a file, of the type of most."""


def _in_gguf_file(component: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The layers that a file has quantized, by path: linear ones in lists of blocks (`tools/lcpp.patch` of ComfyUI-GGUF
    leaves embeddings and what comes last in 16 or 32 bits)."""
    lists = [path for path, module in component.named_modules() if isinstance(module, nn.ModuleList)]
    for path, layer in list(component.named_modules()):
        if type(layer) is nn.Linear and any(path.startswith(f"{each}.") for each in lists):
            yield path, layer


def _gguf_layers(way: Quantization) -> Callable[[str, nn.Linear], nn.Module]:
    """What makes diffusers' layer of a linear one: in its file's type, where its rows are whole blocks."""
    theirs = _gguf_utils()

    def make(path: str, layer: nn.Linear) -> nn.Module:
        is_projection = PROJECTION.search(path) is not None and JOINED_WITH_MLP not in path
        gguf_type = (is_projection and way.gguf_projections) or way.gguf_type
        block_size, block_bytes = GGUF_BLOCKS[str(gguf_type)]
        if layer.in_features % block_size:
            return layer
        row_bytes = layer.in_features // block_size * block_bytes
        blocks = torch.empty(layer.out_features, row_bytes, dtype=torch.uint8, device="meta")
        with torch.device("meta"):
            made: nn.Module = theirs.GGUFLinear(
                layer.in_features, layer.out_features, bias=False, compute_dtype=layer.weight.dtype
            )
        quant_type = getattr(theirs.gguf.GGMLQuantizationType, str(gguf_type))
        made.weight = theirs.GGUFParameter(blocks, quant_type=quant_type)
        made.bias = layer.bias
        return made

    return make


@cache
def _gguf_utils() -> ModuleType:
    """diffusers' GGUF layers, whose module imports the package gguf for names and sizes of types alone.

    Where that is not installed, a copy of the module is made over a stand-in for it. `diffusers/quantizers/gguf/utils.py`.
    """
    name = f"{diffusers_gguf.__name__}.utils"
    if importlib.util.find_spec("gguf") is not None:
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, Path(diffusers_gguf.__file__).parent / "utils.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    types: Any = SimpleNamespace(GGMLQuantizationType=_Names(), GGML_QUANT_SIZES=GGUF_BLOCKS)
    sys.modules["gguf"] = types
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["gguf"]
    let_keep_tables(module)
    return module


class _Names:
    """Has every attribute: its name."""

    def __getattr__(self, name: str) -> str:
        return name
