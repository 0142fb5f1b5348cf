"""Stable Diffusion 1.5, XL, 3 and 3.5."""

import torch
from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from vramtune.catalog.empty import empty
from vramtune.catalog.encoders import clip_big_g, clip_l, clip_l_projected, t5_xxl
from vramtune.catalog.pipelines.parts import sd3_vae, sd_vae
from vramtune.catalog.tokenizers import clip_tokenizer, t5_tokenizer

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def sd15() -> StableDiffusionPipeline:
    """Stable Diffusion 1.5 without its safety checker, whose forward depends on the values of its output."""
    dtype = torch.float16
    return StableDiffusionPipeline(
        vae=sd_vae(dtype, sample_size=512, scaling_factor=0.18215),
        text_encoder=clip_l(dtype),
        tokenizer=clip_tokenizer(),
        unet=empty(lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768), dtype=dtype),
        scheduler=PNDMScheduler(**BETAS, set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> StableDiffusionXLPipeline:
    """Stable Diffusion XL; its VAE overflows in float16, so the pipeline decodes in float32 (`force_upcast`)."""
    dtype = torch.float16
    return StableDiffusionXLPipeline(
        vae=sd_vae(dtype, sample_size=1024, scaling_factor=0.13025, force_upcast=True),
        text_encoder=clip_l(dtype),
        text_encoder_2=clip_big_g(dtype),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(pad_token="!"),
        unet=empty(_sdxl_unet, dtype=dtype),
        scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )


def _sdxl_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def sd3_medium() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 Medium: 24 layers."""
    return _sd3(torch.float16, num_layers=24, pos_embed_max_size=192)


def sd35_medium() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3.5 Medium: 24 layers, the first 13 with a second attention."""
    return _sd3(
        torch.bfloat16,
        num_layers=24,
        pos_embed_max_size=384,
        qk_norm="rms_norm",
        dual_attention_layers=tuple(range(13)),
    )


def sd35_large() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3.5 Large: 38 layers."""
    return _sd3(torch.bfloat16, num_layers=38, pos_embed_max_size=192, qk_norm="rms_norm")


def _sd3(dtype: torch.dtype, *, num_layers: int, **config: object) -> StableDiffusion3Pipeline:
    """As many heads of 64 channels as layers."""
    return StableDiffusion3Pipeline(
        transformer=empty(
            lambda: SD3Transformer2DModel(
                num_layers=num_layers, num_attention_heads=num_layers, caption_projection_dim=64 * num_layers, **config
            ),
            dtype=dtype,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=sd3_vae(dtype),
        text_encoder=clip_l_projected(dtype),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_big_g(dtype),
        tokenizer_2=clip_tokenizer(pad_token="!"),
        text_encoder_3=t5_xxl(dtype),
        tokenizer_3=t5_tokenizer(),
    )
