"""Z-Image."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

from vramtune.catalog.empty import empty
from vramtune.catalog.encoders import qwen3_4b
from vramtune.catalog.pipelines.parts import flux1_vae
from vramtune.catalog.tokenizers import qwen_tokenizer


def z_image_turbo() -> ZImagePipeline:
    """Z-Image Turbo: one stream of 30 layers, distilled to eight steps."""
    dtype = torch.bfloat16
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flux1_vae(dtype),
        text_encoder=qwen3_4b(dtype),
        tokenizer=qwen_tokenizer(),
        transformer=empty(ZImageTransformer2DModel, dtype=dtype),
    )
