"""FLUX.1, FLUX.2, FLUX.3, and Chroma, which is FLUX.1 made smaller."""

import warnings
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    Flux3DistilledModularPipeline,
    Flux3Transformer2DModel,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from diffusers.modular_pipelines import Flux3DistilledAutoBlocks

from vramtune.catalog.empty import empty
from vramtune.catalog.encoders import (
    clip_l,
    mistral_small_24b,
    qwen3_4b_causal,
    qwen3_8b_causal,
    qwen3_vl_4b_causal,
    t5_xxl,
)
from vramtune.catalog.pipelines.parts import flux1_vae, flux_scheduler
from vramtune.catalog.tokenizers import QwenProcessor, clip_tokenizer, mistral_tokenizer, qwen_tokenizer, t5_tokenizer

DTYPE = torch.bfloat16


def flux1_dev() -> FluxPipeline:
    """FLUX.1 [dev]: 19 double and 38 single blocks, guidance distilled."""
    return FluxPipeline(scheduler=flux_scheduler(), **_flux1(guidance_embeds=True))


def flux1_schnell() -> FluxPipeline:
    """FLUX.1 [schnell]: for four steps, without guidance."""
    return FluxPipeline(scheduler=FlowMatchEulerDiscreteScheduler(), **_flux1(guidance_embeds=False))


def flux1_kontext_dev() -> FluxKontextPipeline:
    """FLUX.1 Kontext [dev]: [dev] with the image to edit in its sequence."""
    return FluxKontextPipeline(scheduler=flux_scheduler(), **_flux1(guidance_embeds=True))


def _flux1(*, guidance_embeds: bool) -> dict[str, Any]:
    return {
        "vae": flux1_vae(DTYPE),
        "text_encoder": clip_l(DTYPE),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": t5_xxl(DTYPE),
        "tokenizer_2": t5_tokenizer(),
        "transformer": empty(lambda: FluxTransformer2DModel(guidance_embeds=guidance_embeds), dtype=DTYPE),
    }


def chroma1_hd() -> ChromaPipeline:
    """Chroma1 HD: one approximator in the place of FLUX.1's modulation layers; its scheduler's settings are not read."""
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=flux1_vae(DTYPE),
        text_encoder=t5_xxl(DTYPE),
        tokenizer=t5_tokenizer(),
        transformer=empty(_chroma_transformer, dtype=DTYPE),
    )


def _chroma_transformer() -> ChromaTransformer2DModel:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`FluxPosEmbed` is deprecated", FutureWarning)  # diffusers uses it itself
        return ChromaTransformer2DModel()


def flux2_dev() -> Flux2Pipeline:
    """FLUX.2 [dev]: 8 double and 48 single blocks, and Mistral Small with its vision tower for the text."""
    return Flux2Pipeline(
        scheduler=flux_scheduler(),
        vae=empty(AutoencoderKLFlux2, dtype=DTYPE),
        text_encoder=mistral_small_24b(DTYPE),
        tokenizer=mistral_tokenizer(),
        transformer=empty(Flux2Transformer2DModel, dtype=DTYPE),
    )


def flux2_klein_4b() -> Flux2KleinPipeline:
    """FLUX.2 [klein] 4B, distilled to four steps (`convert_flux2_to_diffusers.py`, klein-4b)."""
    return _klein(
        qwen3_4b_causal(DTYPE), num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=3 * 2560
    )


def flux2_klein_9b() -> Flux2KleinPipeline:
    """FLUX.2 [klein] 9B, distilled to four steps (`convert_flux2_to_diffusers.py`, klein-9b)."""
    return _klein(
        qwen3_8b_causal(DTYPE), num_layers=8, num_single_layers=24, num_attention_heads=32, joint_attention_dim=3 * 4096
    )


def _klein(text_encoder: torch.nn.Module, **config: int) -> Flux2KleinPipeline:
    return Flux2KleinPipeline(
        scheduler=flux_scheduler(),
        vae=empty(AutoencoderKLFlux2, dtype=DTYPE),
        text_encoder=text_encoder,
        tokenizer=qwen_tokenizer(),
        transformer=empty(lambda: Flux2Transformer2DModel(guidance_embeds=False, **config), dtype=DTYPE),
        is_distilled=True,
    )


def flux3_klein() -> Flux3DistilledModularPipeline:
    """FLUX.3 Image [klein], a modular pipeline, distilled to 16 steps; the model that rewrites prompts is left out."""
    blocks = Flux3DistilledAutoBlocks()
    del blocks.sub_blocks["prompt_upsampler"]
    pipe = blocks.init_pipeline()
    pipe.update_components(
        transformer=empty(lambda: Flux3Transformer2DModel(flow_map=True), dtype=DTYPE),
        vae=empty(AutoencoderKLFlux2, dtype=DTYPE),
        text_encoder=qwen3_vl_4b_causal(DTYPE),
    )
    pipe.tokenizer = QwenProcessor(patch_size=16, max_pixels=16 * 16 * 4 * 16384)
    return pipe
