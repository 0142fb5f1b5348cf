"""The pipelines of the race: real classes at true proportions and a smaller width, with weights that nobody wrote."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import nn
from transformers import (
    BatchEncoding,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from vramtune.plain_tensors import plain_tensors

DTYPE = torch.bfloat16
NUM_STEPS = 8
VOCABULARY = 4096
PROMPT = "a red fox in the snow"
QUANTIZED = Path(__file__).parents[2] / ".venv-quantized"
"""Where `make quantized` unpacks bitsandbytes."""
BLOCK_SIZE = 64
"""Weights of bitsandbytes' four bits that share a statistic."""

Built = tuple[DiffusionPipeline, dict[str, Any]]
"""A pipeline on the host, and what it is called with."""


def t5(model: Any, config: Any) -> Any:
    """An encoder of T5's kind at 40% of its size."""
    made = config(
        d_model=768, d_ff=2048, d_kv=64, num_heads=12, num_layers=24, feed_forward_proj="gated-gelu", vocab_size=32128
    )
    return unwritten(lambda: model(made))


def flux(num_heads: int) -> Built:
    """Like FLUX.1: a transformer of two kinds of blocks, T5 at 40% of its size, 512 x 512 pixels."""
    transformer = FluxTransformer2DModel
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        vae=image_vae(latent_channels=16),
        text_encoder=clip(CLIPTextModel, width=256, num_layers=6),
        tokenizer=None,
        text_encoder_2=t5(T5EncoderModel, T5Config),
        tokenizer_2=None,
        transformer=unwritten(
            lambda: transformer(
                in_channels=64,
                num_layers=8,
                num_single_layers=16,
                attention_head_dim=64,
                num_attention_heads=num_heads,
                joint_attention_dim=768,
                pooled_projection_dim=256,
                guidance_embeds=True,
                axes_dims_rope=(8, 28, 28),
            )
        ),
    )
    return with_tokens(pipe), {"height": 512, "width": 512, "max_sequence_length": 256}


def flux_in_nf4() -> Built:
    """The same with its transformer and its T5 as bitsandbytes loads them in four bits."""
    pipe, call_kwargs = flux(num_heads=18)
    in_nf4(pipe.transformer)
    in_nf4(pipe.text_encoder_2)
    return pipe, call_kwargs


def sdxl() -> Built:
    """Like SDXL, at 60% of its width: a U-Net most of whose weights are in the middle, 1024 x 1024 pixels."""
    unet = UNet2DConditionModel
    pipe = StableDiffusionXLPipeline(
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        vae=image_vae(latent_channels=4),
        text_encoder=clip(CLIPTextModel, width=384, num_layers=12),
        text_encoder_2=clip(CLIPTextModelWithProjection, width=640, num_layers=24),
        tokenizer=None,
        tokenizer_2=None,
        unet=unwritten(
            lambda: unet(
                sample_size=128,
                in_channels=4,
                out_channels=4,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                block_out_channels=(192, 384, 768),
                layers_per_block=2,
                attention_head_dim=(3, 6, 12),
                transformer_layers_per_block=(1, 2, 10),
                cross_attention_dim=1024,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=640 + 6 * 256,
            )
        ),
    )
    return with_tokens(pipe), {"height": 1024, "width": 1024}


def wan() -> Built:
    """Like Wan 2.1 14B: thirty equal blocks, UMT5 at 40% of their size, 33 frames of 416 x 240 pixels."""
    transformer, vae = WanTransformer3DModel, AutoencoderKLWan
    pipe = WanPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0
        ),  # UniPC solves equations, for which the null card has no kernels
        vae=unwritten(lambda: vae(base_dim=48, z_dim=16)),
        text_encoder=t5(UMT5EncoderModel, UMT5Config),
        tokenizer=None,
        transformer=unwritten(
            lambda: transformer(
                num_attention_heads=8,
                attention_head_dim=128,
                in_channels=16,
                out_channels=16,
                text_dim=768,
                freq_dim=256,
                ffn_dim=2816,
                num_layers=30,
            )
        ),
    )
    return with_tokens(pipe), {"height": 240, "width": 416, "num_frames": 33, "max_sequence_length": 256}


PIPELINES: dict[str, Callable[[], Built]] = {
    "flux-awkward": lambda: flux(num_heads=16),
    "flux-nf4": flux_in_nf4,
    "sdxl": sdxl,
    "wan": wan,
}
"""By name. The awkward one's blocks have a little more than 30 MiB, and pieces of them than 16 and 32: CUDA's memory comes
in pieces of 2 MiB. FLUX.1 is as awkward, but with blocks of 270 MiB, where it matters less."""


def build(name: str) -> Built:
    """The named pipeline and its call."""
    pipe, call_kwargs = PIPELINES[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe, {"prompt": PROMPT, "num_inference_steps": NUM_STEPS, "output_type": "pt", **call_kwargs}


def denoiser(pipe: Any) -> str:
    """The name of the component that runs in every step."""
    return "transformer" if hasattr(pipe, "transformer") else "unet"


def models(pipe: Any) -> dict[str, nn.Module]:
    """The pipeline's components that have weights."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def weight_bytes(module: nn.Module) -> int:
    """Bytes of parameters, those that are shared once, with the statistics of quantized ones."""
    plain = (
        plain
        for part in module.modules()
        for p in part._parameters.values()
        if p is not None
        for plain in plain_tensors(p, part)
    )
    return sum(tensor.nbytes for tensor in {id(each.tensor): each.tensor for each in plain}.values())


def unwritten(make: Callable[[], nn.Module]) -> nn.Module:
    """A module in memory that nobody has written to, which the host has not paid for yet; positions have their values."""
    with torch.device("meta"):
        module = make().to(DTYPE)
    module = module.to_empty(device="cpu").eval().requires_grad_(False)
    if isinstance(module, PreTrainedModel):
        module.tie_weights()
    for path, buffer in module.named_buffers():
        if path.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return module


def in_nf4(module: nn.Module) -> None:
    """Put bitsandbytes' layers in the place of a module's linear ones, over memory that nobody has written to."""
    for path, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear):
            module.set_submodule(path, four_bit(layer))


def four_bit(layer: nn.Linear) -> nn.Module:
    """bitsandbytes' layer of the same shape, with the defaults of `BitsAndBytesConfig` and its 4-bit type nf4."""
    if (
        str(QUANTIZED) not in sys.path
    ):  # not before: whoever finds it imports it, and it asks for the card, which no fork could use
        sys.path.append(str(QUANTIZED))
    from bitsandbytes.functional import QuantState, get_4bit_type
    from bitsandbytes.nn import Linear4bit, Params4bit

    options: dict[str, Any] = {"compress_statistics": False, "quant_type": "nf4"}
    made = Linear4bit(layer.in_features, layer.out_features, bias=False, compute_dtype=DTYPE, device="meta", **options)
    numel = layer.weight.numel()
    state = QuantState(
        absmax=torch.empty(-(-numel // BLOCK_SIZE)),
        shape=layer.weight.shape,
        code=get_4bit_type("nf4", device="cpu"),
        blocksize=BLOCK_SIZE,
        quant_type="nf4",
        dtype=DTYPE,
    )
    packed = torch.empty((numel + 1) // 2, 1, dtype=torch.uint8)
    made.weight = Params4bit(packed, requires_grad=False, quant_state=state, bnb_quantized=True, module=made, **options)
    made.bias = layer.bias
    return made.eval()


def clip(kind: Callable[[CLIPTextConfig], nn.Module], *, width: int, num_layers: int) -> nn.Module:
    """A text encoder of CLIP's."""
    return unwritten(
        lambda: kind(
            CLIPTextConfig(
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=num_layers,
                num_attention_heads=width // 64,
                projection_dim=width,
                vocab_size=VOCABULARY,
                bos_token_id=VOCABULARY - 2,
                eos_token_id=VOCABULARY - 1,
            )
        )
    )


def image_vae(*, latent_channels: int) -> nn.Module:
    """A VAE of half the usual width."""
    return unwritten(
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(64, 128, 256, 256),
            layers_per_block=2,
            latent_channels=latent_channels,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.36,
            shift_factor=0.11,
            sample_size=1024,
            force_upcast=False,
        )
    )


class Tokenizer:
    """Any text to as many tokens as are asked for: a real one would have to be downloaded."""

    model_max_length = 77
    added_tokens_encoder: Mapping[str, int] = MappingProxyType({})

    def __call__(self, text: str | list[str], max_length: int = 77, **_: Any) -> BatchEncoding:
        num_texts = 1 if isinstance(text, str) else len(text)
        ids = torch.arange(max_length).expand(num_texts, -1) % (VOCABULARY - 2)
        ids = ids.clone()
        ids[:, -1] = VOCABULARY - 1
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def tokenize(self, text: str) -> list[str]:
        return text.split()

    def batch_decode(self, ids: torch.Tensor, **_: Any) -> list[str]:
        return [""] * len(ids)


def with_tokens(pipe: Any) -> Any:
    """The pipeline with a tokenizer for each of its encoders."""
    for name in ("tokenizer", "tokenizer_2"):
        if name in pipe.components:
            setattr(pipe, name, Tokenizer())
    pipe.tokenizer_max_length = Tokenizer.model_max_length
    return pipe
