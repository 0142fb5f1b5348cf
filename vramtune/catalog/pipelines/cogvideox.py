"""CogVideoX; the configurations are those of diffusers' `convert_cogvideox_to_diffusers.py`."""

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel

from vramtune.catalog.empty import empty
from vramtune.catalog.encoders import t5_xxl
from vramtune.catalog.tokenizers import t5_tokenizer


def cogvideox_2b() -> CogVideoXPipeline:
    """CogVideoX 2B: 30 layers, positions from a table; trained in float16."""
    return _cogvideox(torch.float16, scaling_factor=1.15258426, snr_shift_scale=3.0)


def cogvideox_5b() -> CogVideoXPipeline:
    """CogVideoX 5B: 42 layers, rotary positions; trained in bfloat16."""
    return _cogvideox(
        torch.bfloat16,
        scaling_factor=0.7,
        snr_shift_scale=1.0,
        num_layers=42,
        num_attention_heads=48,
        use_rotary_positional_embeddings=True,
    )


def _cogvideox(
    dtype: torch.dtype, *, scaling_factor: float, snr_shift_scale: float, **config: int
) -> CogVideoXPipeline:
    return CogVideoXPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_xxl(dtype),
        vae=empty(lambda: AutoencoderKLCogVideoX(scaling_factor=scaling_factor), dtype=dtype),
        transformer=empty(lambda: CogVideoXTransformer3DModel(**config), dtype=dtype),
        scheduler=CogVideoXDDIMScheduler(
            snr_shift_scale=snr_shift_scale,
            clip_sample=False,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        ),
    )
