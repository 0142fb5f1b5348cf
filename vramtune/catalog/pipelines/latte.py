"""Latte."""

import torch
from diffusers import DDIMScheduler, LattePipeline, LatteTransformer3DModel

from vramtune.catalog.empty import empty
from vramtune.catalog.encoders import t5_xxl
from vramtune.catalog.pipelines.parts import sd_vae
from vramtune.catalog.tokenizers import t5_tokenizer


def latte1() -> LattePipeline:
    """Latte-1: 28 pairs of a spatial and a temporal block, made from PixArt's, with Stable Diffusion 1's VAE."""
    dtype = torch.float16
    return LattePipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_xxl(dtype),
        vae=sd_vae(dtype, sample_size=512, scaling_factor=0.18215),
        transformer=empty(_transformer, dtype=dtype),
        scheduler=DDIMScheduler(clip_sample=False),
    )


def _transformer() -> LatteTransformer3DModel:
    return LatteTransformer3DModel(
        num_layers=28,
        attention_head_dim=72,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=1152,
        attention_bias=True,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=4096,
    )
