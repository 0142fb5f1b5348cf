"""Qwen-Image, Qwen-Image-Edit and Qwen-Image 2.1."""

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)

from vramtune.catalog.empty import empty
from vramtune.catalog.encoders import qwen3_vl_8b_causal, qwen25_vl_7b
from vramtune.catalog.tokenizers import QwenProcessor, qwen_tokenizer

DTYPE = torch.bfloat16


def qwen_image() -> QwenImagePipeline:
    """Qwen-Image, and its release of December 2025 (2512), of the same size."""
    return QwenImagePipeline(
        scheduler=_scheduler(),
        vae=empty(AutoencoderKLQwenImage, dtype=DTYPE),
        text_encoder=qwen25_vl_7b(DTYPE),
        tokenizer=qwen_tokenizer(),
        transformer=empty(QwenImageTransformer2DModel, dtype=DTYPE),
    )


def qwen_image_edit_2511() -> QwenImageEditPlusPipeline:
    """Qwen-Image-Edit of November 2025: the images to edit are seen by the encoder and in the sequence."""
    return QwenImageEditPlusPipeline(
        scheduler=_scheduler(),
        vae=empty(AutoencoderKLQwenImage, dtype=DTYPE),
        text_encoder=qwen25_vl_7b(DTYPE),
        tokenizer=qwen_tokenizer(),
        processor=QwenProcessor(patch_size=14, max_pixels=14 * 14 * 4 * 16384),
        transformer=empty(lambda: QwenImageTransformer2DModel(zero_cond_t=True), dtype=DTYPE),
    )


def qwen_image_21() -> QwenImage21Pipeline:
    """Qwen-Image 2.1: one stream of 32 layers with a cache of keys and values; its scheduler's settings are not read."""
    return QwenImage21Pipeline(
        scheduler=_scheduler(),
        vae=empty(AutoencoderKLQwenImage21, dtype=DTYPE),
        text_encoder=qwen3_vl_8b_causal(DTYPE),
        processor=QwenProcessor(patch_size=16, max_pixels=16 * 16 * 4 * 16384),
        transformer=empty(QwenImage21Transformer2DModel, dtype=DTYPE),
    )


def _scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
    )
