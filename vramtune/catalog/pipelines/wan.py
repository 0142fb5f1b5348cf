"""Wan 2.1 and 2.2; the configurations are those of diffusers' `convert_wan_to_diffusers.py`."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)

from vramtune.catalog.empty import empty
from vramtune.catalog.encoders import umt5_xxl
from vramtune.catalog.tokenizers import t5_tokenizer

DTYPE = torch.bfloat16
SIZE_14B = {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824}


def wan21_14b() -> WanPipeline:
    """Wan 2.1 text to video, 14B; the VAE in float32, as the model card says."""
    return WanPipeline(transformer=_transformer(**SIZE_14B), vae=_vae(), **_other_parts(flow_shift=3.0))


def wan21_1b() -> WanPipeline:
    """Wan 2.1 text to video, 1.3B."""
    transformer = _transformer(num_attention_heads=12, num_layers=30, ffn_dim=8960)
    return WanPipeline(transformer=transformer, vae=_vae(), **_other_parts(flow_shift=3.0))


def wan22_t2v_a14b() -> WanPipeline:
    """Wan 2.2 text to video: one expert for the noisy steps, one for the others."""
    return WanPipeline(
        transformer=_transformer(**SIZE_14B),
        transformer_2=_transformer(**SIZE_14B),
        vae=_vae(),
        boundary_ratio=0.875,
        **_other_parts(flow_shift=3.0),
    )


def wan22_i2v_a14b() -> WanImageToVideoPipeline:
    """Wan 2.2 image to video: the first frame comes in 20 more channels, without an image encoder."""
    return WanImageToVideoPipeline(
        transformer=_transformer(**SIZE_14B, in_channels=36),
        transformer_2=_transformer(**SIZE_14B, in_channels=36),
        vae=_vae(),
        boundary_ratio=0.9,
        **_other_parts(flow_shift=3.0),
    )


def wan22_ti2v_5b() -> WanPipeline:
    """Wan 2.2 text or image to video, 5B, with a VAE of 16x16x4 pixels a latent."""
    return WanPipeline(
        transformer=_transformer(num_attention_heads=24, num_layers=30, ffn_dim=14336, in_channels=48, out_channels=48),
        vae=_vae(
            base_dim=160,
            decoder_base_dim=256,
            z_dim=48,
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
            # published measures of the 48 channels; only their number matters here
            latents_mean=[0.0] * 48,
            latents_std=[1.0] * 48,
        ),
        expand_timesteps=True,
        **_other_parts(flow_shift=5.0),
    )


def _transformer(**config: int) -> WanTransformer3DModel:
    return empty(lambda: WanTransformer3DModel(**config), dtype=DTYPE)


def _vae(**config: object) -> AutoencoderKLWan:
    return empty(lambda: AutoencoderKLWan(**config), dtype=torch.float32)


def _other_parts(*, flow_shift: float) -> dict[str, Any]:
    return {
        "tokenizer": t5_tokenizer(),
        "text_encoder": umt5_xxl(DTYPE),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift
        ),
    }
