"""PixArt-Sigma."""

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

from vramtune.catalog.empty import empty
from vramtune.catalog.encoders import t5_xxl
from vramtune.catalog.pipelines.parts import sd_vae
from vramtune.catalog.tokenizers import t5_tokenizer


def pixart_sigma() -> PixArtSigmaPipeline:
    """PixArt-Sigma XL for 1024 pixels, with SDXL's VAE (`convert_pixart_sigma_to_diffusers.py`)."""
    dtype = torch.float16
    return PixArtSigmaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_xxl(dtype),
        vae=sd_vae(dtype, sample_size=1024, scaling_factor=0.13025),
        transformer=empty(
            lambda: PixArtTransformer2DModel(
                caption_channels=4096, interpolation_scale=2, use_additional_conditions=False
            ),
            dtype=dtype,
        ),
        scheduler=DPMSolverMultistepScheduler(),
    )
