"""MiniMax-H3, a modular pipeline; the configurations are those of diffusers' `convert_minimax_h3_to_diffusers.py`."""

import warnings

import torch
from diffusers import (
    AutoencoderKLMiniMaxH3,
    AutoencoderKLMiniMaxH3Audio,
    MiniMaxH3ModularPipeline,
    MiniMaxH3Scheduler,
    MiniMaxH3Transformer3DModel,
)
from diffusers.modular_pipelines import MiniMaxH3Blocks

from vramtune.catalog.empty import empty
from vramtune.catalog.encoders import qwen3_vl_32b_causal
from vramtune.catalog.pipelines.parts import with_computed_filters
from vramtune.catalog.tokenizers import QwenProcessor, qwen_tokenizer


def minimax_h3() -> MiniMaxH3ModularPipeline:
    """MiniMax-H3 from text to video and sound; the second transformer, for references, is no part of that workflow."""
    dtype = torch.bfloat16
    pipe = MiniMaxH3Blocks().get_workflow("t2va").init_pipeline()
    pipe.update_components(
        transformer=empty(MiniMaxH3Transformer3DModel, dtype=dtype),
        vae=empty(AutoencoderKLMiniMaxH3, dtype=dtype),
        audio_vae=empty(lambda: with_computed_filters(_audio_vae), dtype=dtype),
        text_encoder=qwen3_vl_32b_causal(dtype),
        tokenizer=qwen_tokenizer(),
        scheduler=MiniMaxH3Scheduler(shift=12.0),
        audio_scheduler=MiniMaxH3Scheduler(shift=3.0),
    )
    pipe.processor = QwenProcessor(patch_size=16, max_pixels=16 * 16 * 4 * 16384)
    return pipe


@torch.no_grad()  # its weight norms compute their weights as they are made
def _audio_vae() -> AutoencoderKLMiniMaxH3Audio:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*weight_norm` is deprecated", FutureWarning)  # diffusers uses it itself
        # published measures of the 32 channels; only their number matters here
        return AutoencoderKLMiniMaxH3Audio(latents_mean=[0.0] * 32, latents_std=[1.0] * 32)
