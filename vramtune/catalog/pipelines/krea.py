"""Krea 2."""

import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel

from vramtune.catalog.empty import empty
from vramtune.catalog.encoders import qwen3_vl_4b
from vramtune.catalog.tokenizers import qwen_tokenizer


def krea2_turbo() -> Krea2Pipeline:
    """Krea 2 Turbo, of the size of Raw, distilled to eight steps; its scheduler's settings are not read."""
    dtype = torch.bfloat16
    return Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=empty(AutoencoderKLQwenImage, dtype=dtype),
        text_encoder=qwen3_vl_4b(dtype),
        tokenizer=qwen_tokenizer(),
        transformer=empty(Krea2Transformer2DModel, dtype=dtype),
        is_distilled=True,
    )
