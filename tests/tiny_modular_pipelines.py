"""Tiny modular pipelines: components of `tiny_pipelines` under modular blocks, and two families that are modular only.

`build(name)` makes one of `CALL`'s pipelines, the same each time; `run(pipe, name)` calls it for two steps.
"""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLMiniMaxH3,
    AutoencoderKLMiniMaxH3Audio,
    ComponentsManager,
    Flux3Transformer2DModel,
    FluxModularPipeline,
    MiniMaxH3Scheduler,
    MiniMaxH3Transformer3DModel,
    ModularPipeline,
    StableDiffusionXLModularPipeline,
)
from diffusers.modular_pipelines import Flux3DistilledAutoBlocks, MiniMaxH3Blocks
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tests import tiny_pipelines

STANDARD = {"flux": FluxModularPipeline, "sdxl": StableDiffusionXLModularPipeline}
CALL: dict[str, dict[str, Any]] = {
    "flux": tiny_pipelines.CALL["flux"],
    "sdxl": tiny_pipelines.CALL["sdxl"],
    "flux3": {"height": 32, "width": 32, "text_encoder_out_layers": (0, 1)},
    "minimax_h3": {"height": 32, "width": 32, "num_frames": 124},  # as few as it takes
}
CALL = {name: {"num_inference_steps": 2, **settings} for name, settings in CALL.items()}


def build(name: str, manager: ComponentsManager | None = None) -> ModularPipeline:
    """The named pipeline, registered with a manager if there is one; its random weights are the same each time."""
    torch.manual_seed(0)
    if name in STANDARD:
        pipe = with_components_of(tiny_pipelines.build(name), STANDARD[name](components_manager=manager))
    else:
        pipe = {"flux3": flux3, "minimax_h3": minimax_h3}[name](manager)
    silence(pipe._blocks)
    return pipe


def run(pipe: ModularPipeline, name: str, **call_kwargs: Any) -> torch.Tensor:
    """One call with a fixed seed, as a tensor."""
    output = "videos" if name == "minimax_h3" else "images"
    settings = {"prompt": "a photo of a cat", "output_type": "pt", "output": output, **CALL[name], **call_kwargs}
    return pipe(generator=torch.Generator("cpu").manual_seed(0), **settings)


def with_components_of(standard: Any, pipe: ModularPipeline) -> ModularPipeline:
    """The modular pipeline with those components of a standard one that it asks for."""
    found = {name: standard.components.get(name) for name in pipe.pretrained_component_names}
    pipe.update_components(**{name: component for name, component in found.items() if component is not None})
    return pipe


def silence(block: Any) -> None:
    """Switch the progress bars of a block and those in it off; the pipeline's own method reaches one level only."""
    if hasattr(block, "set_progress_bar_config"):
        block.set_progress_bar_config(disable=True)
    for inner in block.sub_blocks.values():
        silence(inner)


class Processor:
    """What FLUX.3 and MiniMax-H3 ask of Qwen3-VL's."""

    tokenizer = property(lambda self: tiny_pipelines.t5_tokenizer())

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        """The messages alone."""
        return " ".join(message["content"] for message in messages)

    def create_mm_token_type_ids(self, ids: list[list[int]]) -> list[list[int]]:
        """Nothing but text."""
        return [[0] * len(each) for each in ids]


def qwen3_vl(num_layers: int) -> Qwen3VLForConditionalGeneration:
    """Qwen3-VL with hidden states of width 16."""
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "mrope_interleaved": True, "rope_theta": 10000.0}
    sizes = {"hidden_size": 16, "intermediate_size": 16}
    text = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 100, "rope_scaling": rope}
    vision = {"depth": 1, "num_heads": 2, "out_hidden_size": 16, "deepstack_visual_indexes": [0], "patch_size": 2}
    config = Qwen3VLConfig(text_config=sizes | text | {"num_hidden_layers": num_layers}, vision_config=sizes | vision)
    return Qwen3VLForConditionalGeneration(config).eval()


def flux3(manager: ComponentsManager | None) -> ModularPipeline:
    """FLUX.3, step-distilled, without the model that rewrites prompts."""
    blocks = Flux3DistilledAutoBlocks()
    del blocks.sub_blocks["prompt_upsampler"]
    pipe = blocks.init_pipeline(components_manager=manager)
    transformer = Flux3Transformer2DModel(
        in_channels=16,
        cond_in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 4, 4),
        flow_map=True,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
    )
    pipe.update_components(transformer=transformer.eval(), vae=vae.eval(), text_encoder=qwen3_vl(1))
    pipe.tokenizer = Processor()
    return pipe


def minimax_h3(manager: ComponentsManager | None) -> ModularPipeline:
    """MiniMax-H3, from text to video and sound; it reads the hidden state behind its encoder's 50th layer."""
    pipe = MiniMaxH3Blocks().get_workflow("t2va").init_pipeline(components_manager=manager)
    transformer = MiniMaxH3Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=2,
        ffn_dim=32,
        in_channels=4,
        audio_in_channels=8,
        text_dim=16,
        freq_dim=8,
        time_embed_hidden_dim=24,
        time_embed_dim=16,
        rope_freq_dim=2,
    )
    vae = AutoencoderKLMiniMaxH3(
        latent_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        spatial_downsample_factors=(2, 2),
        temporal_downsample_factors=(2, 2),
        norm_num_groups=8,
        decoder_num_layers=2,
        decoder_num_attention_heads=2,
        decoder_attention_head_dim=8,
        decoder_num_register_tokens=2,
        decoder_ffn_mult=2,
        clip_length=17,
        token_drop=3,
        latents_mean=(0.0,) * 4,
        latents_std=(1.0,) * 4,
    )
    with torch.no_grad():  # its weight norms compute their weights as they are made
        audio_vae = AutoencoderKLMiniMaxH3Audio(
            encoder_dim=4,
            encoder_rates=(2, 2),
            latent_dim=32,
            latent_channels=8,
            num_attention_heads=2,
            decoder_dim=16,
            decoder_rates=(2, 2),
            decoder_kernel_sizes=(4, 4),
            resblock_kernel_sizes=(3, 7),
            resblock_dilation_sizes=((1, 3), (1, 3)),
            latents_mean=[0.0] * 8,
            latents_std=[1.0] * 8,
        )
    pipe.update_components(
        transformer=transformer.eval(),
        vae=vae.eval(),
        audio_vae=audio_vae.eval(),
        text_encoder=qwen3_vl(51),
        tokenizer=tiny_pipelines.t5_tokenizer(),
        scheduler=MiniMaxH3Scheduler(shift=12.0),
        audio_scheduler=MiniMaxH3Scheduler(shift=3.0),
    )
    pipe.processor = Processor()
    return pipe
