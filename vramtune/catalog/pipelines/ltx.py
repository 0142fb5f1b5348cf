"""LTX-Video, and LTX-2, which speaks; the configurations are those of diffusers' `convert_ltx*_to_diffusers.py`."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    LTXConditionPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE

from vramtune.catalog.empty import empty
from vramtune.catalog.encoders import gemma3_12b, gemma4_12b, t5_xxl
from vramtune.catalog.pipelines.parts import with_computed_filters
from vramtune.catalog.tokenizers import gemma_tokenizer, t5_tokenizer

DTYPE = torch.bfloat16


def ltx_video() -> LTXPipeline:
    """LTX-Video 2B, version 0.9."""
    return LTXPipeline(
        scheduler=_scheduler(use_dynamic_shifting=True, shift_terminal=0.1),
        vae=empty(AutoencoderKLLTXVideo, dtype=DTYPE),
        text_encoder=t5_xxl(DTYPE),
        tokenizer=t5_tokenizer(),
        transformer=empty(LTXVideoTransformer3DModel, dtype=DTYPE),
    )


def ltx_13b() -> LTXConditionPipeline:
    """LTX-Video 13B, version 0.9.7: a VAE of 32x32x8 pixels a latent that knows the timestep; its upsampler left out."""
    return LTXConditionPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=empty(_video_vae_097, dtype=DTYPE),
        text_encoder=t5_xxl(DTYPE),
        tokenizer=t5_tokenizer(),
        transformer=empty(
            lambda: LTXVideoTransformer3DModel(num_layers=48, attention_head_dim=128, cross_attention_dim=4096),
            dtype=DTYPE,
        ),
    )


def _video_vae_097() -> AutoencoderKLLTXVideo:
    return AutoencoderKLLTXVideo(
        block_out_channels=(128, 256, 512, 1024, 2048),
        down_block_types=("LTXVideo095DownBlock3D",) * 4,
        decoder_block_out_channels=(256, 512, 1024),
        layers_per_block=(4, 6, 6, 2, 2),
        decoder_layers_per_block=(5, 5, 5, 5),
        spatio_temporal_scaling=(True,) * 4,
        decoder_spatio_temporal_scaling=(True,) * 3,
        decoder_inject_noise=(False,) * 4,
        downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        upsample_residual=(True,) * 3,
        upsample_factor=(2, 2, 2),
        timestep_conditioning=True,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )


def ltx_23() -> LTX2Pipeline:
    """LTX-2.3: video and sound, with Gemma 3 for the text."""
    return _ltx2(
        text_encoder=gemma3_12b(DTYPE),
        transformer=_transformer(),
        scheduler=_scheduler(use_dynamic_shifting=True, shift_terminal=0.1),
    )


def ltx_25() -> LTX2Pipeline:
    """LTX-2.5, distilled, with Gemma 4 for the text; the optional head that guesses a duration is left out."""
    return _ltx2(
        text_encoder=gemma4_12b(DTYPE),
        transformer=_transformer(ff_bias=False, use_keyframes_abs_pos_embedding=True),
        scheduler=_scheduler(use_dynamic_shifting=False),
    )


def _ltx2(**parts: Any) -> LTX2Pipeline:
    return LTX2Pipeline(
        vae=empty(_video_vae, dtype=DTYPE),
        audio_vae=empty(AutoencoderKLLTX2Audio, dtype=DTYPE),
        tokenizer=gemma_tokenizer(),
        connectors=empty(_connectors, dtype=DTYPE),
        vocoder=empty(lambda: with_computed_filters(LTX2VocoderWithBWE), dtype=DTYPE),
        **parts,
    )


def _transformer(**config: bool) -> LTX2VideoTransformer3DModel:
    return empty(
        lambda: LTX2VideoTransformer3DModel(
            gated_attn=True,
            cross_attn_mod=True,
            audio_gated_attn=True,
            audio_cross_attn_mod=True,
            rope_type="split",
            use_prompt_embeddings=False,
            perturbed_attn=True,
            **config,
        ),
        dtype=DTYPE,
    )


def _connectors() -> LTX2TextConnectors:
    return LTX2TextConnectors(
        video_connector_num_attention_heads=32,
        video_connector_num_layers=8,
        video_gated_attn=True,
        audio_connector_num_attention_heads=32,
        audio_connector_attention_head_dim=64,
        audio_connector_num_layers=8,
        audio_gated_attn=True,
        rope_type="split",
        per_modality_projections=True,
        proj_bias=True,
    )


def _video_vae() -> AutoencoderKLLTX2Video:
    return AutoencoderKLLTX2Video(
        block_out_channels=(256, 512, 1024, 1024),
        decoder_block_out_channels=(256, 512, 512, 1024),
        layers_per_block=(4, 6, 4, 2, 2),
        decoder_layers_per_block=(4, 6, 4, 2, 2),
        decoder_spatio_temporal_scaling=(True,) * 4,
        decoder_inject_noise=(False,) * 5,
        upsample_type=("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        upsample_residual=(False,) * 4,
        upsample_factor=(2, 2, 1, 2),
        decoder_causal=False,
        decoder_spatial_padding_mode="zeros",
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )


def _scheduler(**config: object) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(
        base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, max_image_seq_len=4096, **config
    )
