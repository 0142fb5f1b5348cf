"""Ideogram 4."""

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Ideogram4Pipeline,
    Ideogram4Transformer2DModel,
)

from vramtune.catalog.empty import empty
from vramtune.catalog.encoders import qwen3_vl_8b
from vramtune.catalog.tokenizers import qwen_tokenizer


def ideogram4() -> Ideogram4Pipeline:
    """Ideogram 4: two transformers run in every step; its encoder's head is a component of its own, left out."""
    dtype = torch.bfloat16
    return Ideogram4Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=empty(AutoencoderKLFlux2, dtype=dtype),
        text_encoder=qwen3_vl_8b(dtype),
        tokenizer=qwen_tokenizer(),
        transformer=empty(Ideogram4Transformer2DModel, dtype=dtype),
        unconditional_transformer=empty(Ideogram4Transformer2DModel, dtype=dtype),
    )
