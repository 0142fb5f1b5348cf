"""Families that something else has blocked: plain objects with tensors, empty buffers, tiles, routers, inversion."""

from typing import Any

from diffusers import (
    AnyFlowFARPipeline,
    AnyFlowFARTransformer3DModel,
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
    LEditsPPPipelineStableDiffusion,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from benchmarks.classes import encoders, tokenizers
from tests.classes.families.family import family
from tests.classes.families.parts import (
    SeeingProcessor,
    clip_text,
    hunyuan_video_vae,
    picture,
    qwen3,
    qwen25_vl,
    qwen_tokenizer,
    wan_vae,
)
from tests.tiny_pipelines import clip_tokenizer, flow_vae, sd15, t5, t5_tokenizer


@family(height=32, width=32, max_sequence_length=16)
def z_image() -> ZImagePipeline:
    """Its rotary embedder is a plain object that keeps a table of tensors."""
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        qk_norm=True,
        cap_feat_dim=16,
        rope_theta=256.0,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):  # made by torch.empty
        token.data.fill_(1.0)
    return ZImagePipeline(
        transformer=transformer,
        vae=flow_vae(16),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=qwen3(),
        tokenizer=qwen_tokenizer(),
    )


@family(height=32, width=32, num_frames=5, max_sequence_length=8)
def kandinsky5() -> Kandinsky5T2VPipeline:
    """A buffer of no elements."""
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=16,
        in_text_dim=32,
        in_text_dim2=32,
        time_dim=16,
        out_visual_dim=16,
        patch_size=(1, 2, 2),
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(1, 1, 2),
        visual_cond=False,
        attention_type="regular",
    )
    return Kandinsky5T2VPipeline(
        transformer=transformer,
        vae=hunyuan_video_vae(16, num_blocks=2),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=qwen25_vl(32),
        tokenizer=SeeingProcessor(qwen_tokenizer()),
        text_encoder_2=clip_text(),
        tokenizer_2=clip_tokenizer(),
    )


@family(height=64, width=64)
def tiny_vae() -> StableDiffusionPipeline:
    """`AutoencoderTiny`, whose tiles are of a size that small pictures do not have (as in DreamLite)."""
    parts = sd15().components | {"vae": AutoencoderTiny(latent_channels=4)}
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


@family(height=32, width=32, max_sequence_length=16)
def hidream() -> HiDreamImagePipeline:
    """A router: who works depends on the data."""
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[32, 16],
        text_emb_dim=64,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1),
    )
    clip = {"max_position_embeddings": 128}
    pipe = HiDreamImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=flow_vae(4),
        text_encoder=clip_text(projection=True, **clip),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(projection=True, **clip),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(),
        tokenizer_3=t5_tokenizer(),
        text_encoder_4=encoders.llama(),
        tokenizer_4=tokenizers.plain(),
        transformer=transformer,
    )
    pipe.default_sample_size = 16  # up to which it enlarges what is asked for
    return pipe


@family(height=16, width=16, num_frames=9, max_sequence_length=16, runs_on_sim=False)
def anyflow_far() -> AnyFlowFARPipeline:
    """Flex attention, which PyTorch refuses on the simulated GPU."""
    transformer = AnyFlowFARTransformer3DModel(
        patch_size=(1, 2, 2),
        compressed_patch_size=(1, 4, 4),
        full_chunk_limit=3,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=256,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=32,
        gate_value=0.25,
        deltatime_type="r",
        chunk_partition=(1, 1, 1),
    )
    return AnyFlowFARPipeline(
        transformer=transformer,
        vae=wan_vae(),
        scheduler=FlowMapEulerDiscreteScheduler(num_train_timesteps=1000, shift=5.0),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
    )


def inversion() -> dict[str, Any]:
    return {
        "image": picture(),
        "source_prompt": "",
        "source_guidance_scale": 3.5,
        "num_inversion_steps": 4,
        "skip": 0.15,
    }


@family(
    inversion=inversion,
    runs_offloaded=False,
    prompt=None,
    num_inference_steps=None,
    editing_prompt=["glasses", "sunshine"],
    reverse_editing_direction=[False, True],
    edit_guidance_scale=[10.0, 5.0],
)
def ledits() -> LEditsPPPipelineStableDiffusion:
    """It keeps attention maps, and edits what it has inverted; `invert` forgets where the pipeline executes."""
    parts = sd15().components
    del parts["image_encoder"]
    parts["unet"] = UNet2DConditionModel(  # whose third level has the attention maps that are asked for
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=4,
    )
    parts["scheduler"] = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=2)
    return LEditsPPPipelineStableDiffusion(**parts, requires_safety_checker=False)
