"""A small FLUX.1 whose transformer is quantized or cast by hand, by each library that diffusers knows and each kind."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import bitsandbytes
import gguf
import numpy as np
import optimum.quanto
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter
from torch import nn
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_

from tests import tiny_pipelines
from tests.simgpu import load
from vramtune.contract import modules_of
from vramtune.plain_tensors import PACKED_FOR_ONE

Size = Literal["small", "large"]
CALL = {"prompt": "a photo of a cat", "num_inference_steps": 2, "output_type": "pt"} | tiny_pipelines.CALL["flux"]


def build(kind: str, size: Size = "small") -> FluxPipeline:
    """The pipeline with its transformer quantized on the CPU; the same each time."""
    run_on_sim()
    pipe = plain(size)
    if kind != "none":
        KINDS[kind](pipe)
    return pipe


def plain(size: Size = "small") -> FluxPipeline:
    """The pipeline in bfloat16, as it is before."""
    pipe = tiny_pipelines.build("flux")
    torch.manual_seed(1)
    pipe.register_modules(transformer=transformer(size).eval())
    for component in modules_of(pipe).values():
        nn.Module.to(component, torch.bfloat16)
    return pipe


def transformer(size: Size = "small") -> FluxTransformer2DModel:
    """Rows of whole blocks of 256 in every kind. The large one has 98 million weights: some 50 MiB in 4 bits, 187 in 16."""
    num_layers, num_single_layers, num_heads = (1, 2, 4) if size == "small" else (2, 6, 12)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=num_layers,
        num_single_layers=num_single_layers,
        attention_head_dim=64,
        num_attention_heads=num_heads,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(16, 24, 24),
    )


def linears(module: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Linear layers in the blocks, each with the module that has it and its name there."""
    return [
        (owner, name, layer)
        for path, owner in module.named_modules()
        if "transformer_blocks" in path
        for name, layer in owner.named_children()
        if type(layer) is nn.Linear
    ]


def _exchanged(module: nn.Module, made_from: Callable[[nn.Linear], nn.Module]) -> None:
    for owner, name, layer in linears(module):
        setattr(owner, name, made_from(layer).eval().requires_grad_(False))


def four_bit(quant_type: str, *, nested: bool) -> Callable[[nn.Module], None]:
    def made_from(layer: nn.Linear) -> nn.Module:
        made = bitsandbytes.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=torch.bfloat16,
            compress_statistics=nested,
            quant_type=quant_type,
        )
        made.load_state_dict({name: tensor.cpu() for name, tensor in layer.state_dict().items()})
        return made.to(torch.bfloat16).to("cpu")  # quantizes

    return lambda module: _exchanged(module, made_from)


def eight_bit(module: nn.Module) -> None:
    def made_from(layer: nn.Linear) -> nn.Module:
        made = bitsandbytes.nn.Linear8bitLt(
            layer.in_features, layer.out_features, bias=layer.bias is not None, has_fp16_weights=False, threshold=6.0
        )
        made.load_state_dict({name: tensor.cpu() for name, tensor in layer.state_dict().items()})
        return made.to(torch.bfloat16).to("cpu")

    _exchanged(module, made_from)


def gguf_type(quant_type: gguf.GGMLQuantizationType) -> Callable[[nn.Module], None]:
    def made_from(layer: nn.Linear) -> nn.Module:
        made = GGUFLinear(
            layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=torch.bfloat16
        )
        made.weight = GGUFParameter(gguf_bytes(layer.weight, quant_type), quant_type=quant_type)
        if layer.bias is not None:
            made.bias = layer.bias
        return made

    return lambda module: _exchanged(module, made_from)


def gguf_bytes(weight: torch.Tensor, quant_type: gguf.GGMLQuantizationType) -> torch.Tensor:
    """A weight as blocks; of K types, which gguf's Python can only read, blocks of random bits with sane scales."""
    rows = weight.detach().float().cpu().numpy()
    try:
        return torch.from_numpy(gguf.quants.quantize(rows, quant_type))
    except NotImplementedError:
        return torch.from_numpy(_random_blocks(rows.shape, quant_type))


def _random_blocks(shape: tuple[int, int], quant_type: gguf.GGMLQuantizationType) -> np.ndarray[Any, Any]:
    block_size, type_size = gguf.GGML_QUANT_SIZES[quant_type]
    num_blocks = shape[0] * shape[1] // block_size
    blocks = np.random.default_rng(0).integers(0, 256, (num_blocks, type_size), dtype=np.uint8)
    scales = np.full((num_blocks, 1), 1e-4, dtype=np.float16).view(np.uint8)
    if quant_type == gguf.GGMLQuantizationType.Q6_K:  # the scale of a block is its last number
        blocks[:, -2:] = scales
    else:  # Q4_K, Q5_K: scale and minimum are its first ones
        blocks[:, :2] = blocks[:, 2:4] = scales
    return blocks.reshape(shape[0], -1)


def write_gguf(
    module: nn.Module,
    file: Path,
    type_of: Callable[[str], gguf.GGMLQuantizationType] = lambda name: gguf.GGMLQuantizationType.Q8_0,
) -> None:
    """A file as diffusers loads it: the blocks' matrices in the types of their names, everything else in float32."""
    writer = gguf.GGUFWriter(file, "flux")
    for name, value in module.state_dict().items():
        is_quantized = value.ndim == 2 and "transformer_blocks" in name
        kind = type_of(name) if is_quantized else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf_bytes(value, kind).numpy(), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def torchao_config(config: Any) -> Callable[[nn.Module], None]:
    def quantize(module: nn.Module) -> None:
        quantize_(module, config, filter_fn=lambda layer, path: type(layer) is nn.Linear and "blocks" in path)

    return quantize


def packed_by_quanto(module: nn.Module) -> None:
    """4 bits as quanto makes them of bfloat16 on the CPU: packed for its product there."""
    optimum.quanto.quantize(module, weights=optimum.quanto.qint4, include="*transformer_blocks*")
    optimum.quanto.freeze(module)


def quanto(weights: Any) -> Callable[[nn.Module], None]:
    def quantize(module: nn.Module) -> None:
        optimum.quanto.quantize(module, weights=weights, include="*transformer_blocks*")
        optimum.quanto.freeze(module)
        for layer in module.modules():
            unpack(layer)  # 4 bits are packed for the CPU

    return quantize


def layerwise(storage_dtype: torch.dtype) -> Callable[[nn.Module], None]:
    return lambda module: module.enable_layerwise_casting(storage_dtype=storage_dtype, compute_dtype=torch.bfloat16)


@functools.cache
def run_on_sim() -> None:
    """Have bitsandbytes' kernels on the simulated GPU: its own for devices without any are of dozens of operations each."""
    names = (
        "dequantize_4bit",
        "dequantize_blockwise",
        "int8_vectorwise_quant",
        "int8_linear_matmul",
        "int8_mm_dequant",
    )
    load().run_whole("bitsandbytes", *names)


def kept_in_float32(pipe: FluxPipeline) -> None:
    """What transformers keeps of a T5 in float32 (`_keep_in_fp32_modules`)."""
    for module in pipe.text_encoder_2.modules():
        if isinstance(getattr(module, "wo", None), nn.Linear):
            module.wo.float()


def of_transformer(quantize: Callable[[nn.Module], object]) -> Callable[[FluxPipeline], object]:
    return lambda pipe: quantize(pipe.transformer)


def on_device(pipe: FluxPipeline, device: str) -> FluxPipeline:
    """All of the pipeline on a device, brought there by its libraries, in the order of bytes that it has on the CPU."""
    for component in modules_of(pipe).values():
        nn.Module.to(component, device)
        for layer in component.modules():
            if isinstance(layer, bitsandbytes.nn.Linear8bitLt):  # whose statistics `to` leaves behind
                layer.weight.CB, layer.weight.SCB = layer.weight.data, layer.weight.SCB.to(device)
            unpack(layer)
    return pipe


def unpack(layer: nn.Module) -> None:
    """Undo what quanto does where a device has kernels of its own: another order of bytes, and another product."""
    weight: Any = getattr(layer, "weight", None)
    if type(weight).__name__.startswith(PACKED_FOR_ONE):
        bits = hasattr(weight, "weight_qbits_tensor")
        layer.weight = nn.Parameter(weight.weight_qbits_tensor() if bits else weight.weight_qbytes_tensor(), False)


def on_sim(pipe: FluxPipeline) -> FluxPipeline:
    """All of the pipeline on the simulated GPU."""
    return on_device(pipe, "sim")


def bring_timesteps_back(pipe: FluxPipeline) -> None:
    """Those that the scheduler keeps on the device."""
    for name, value in vars(pipe.scheduler).items():
        if isinstance(value, torch.Tensor):
            setattr(pipe.scheduler, name, value.cpu())


KINDS: dict[str, Callable[[FluxPipeline], object]] = {
    "gguf Q8_0": of_transformer(gguf_type(gguf.GGMLQuantizationType.Q8_0)),
    "gguf Q4_0": of_transformer(gguf_type(gguf.GGMLQuantizationType.Q4_0)),
    "gguf Q4_K": of_transformer(gguf_type(gguf.GGMLQuantizationType.Q4_K)),
    "gguf Q6_K": of_transformer(gguf_type(gguf.GGMLQuantizationType.Q6_K)),
    "bitsandbytes nf4": of_transformer(four_bit("nf4", nested=True)),
    "bitsandbytes fp4": of_transformer(four_bit("fp4", nested=False)),
    "bitsandbytes int8": of_transformer(eight_bit),
    "torchao int8": of_transformer(torchao_config(Int8WeightOnlyConfig())),
    "torchao int4": of_transformer(torchao_config(IntxWeightOnlyConfig(weight_dtype=torch.int4))),
    "torchao float8": of_transformer(torchao_config(Float8WeightOnlyConfig())),
    "quanto int8": of_transformer(quanto(optimum.quanto.qint8)),
    "quanto int4": of_transformer(quanto(optimum.quanto.qint4)),
    "quanto float8": of_transformer(quanto(optimum.quanto.qfloat8)),
    "layerwise float8": of_transformer(layerwise(torch.float8_e4m3fn)),
    "float32 beside bfloat16": kept_in_float32,
}
"""Ways to quantize or cast the pipeline, by name."""
