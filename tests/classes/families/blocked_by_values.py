"""Families whose own code asks for values that the pipeline knows: masks, ids, grids of patches.

Kolors, OmniGen and GLM-Image do so too, but need sentencepiece or torchvision: only `benchmarks/classes` has them.
"""

import torch
import transformers as hf
from diffusers import (
    AutoencoderKLHunyuanImage,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLMochi,
    FlowMatchEulerDiscreteScheduler,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
    JoyImageEditPipeline,
    JoyImageEditTransformer3DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    QwenImageEditPipeline,
)
from diffusers.guiders import AdaptiveProjectedMixGuidance, ClassifierFreeGuidance

from benchmarks.classes import encoders, tokenizers
from tests.classes.families.family import family
from tests.classes.families.image import qwen_image_transformer
from tests.classes.families.parts import (
    QWEN_VOCABULARY,
    SeeingProcessor,
    clip_text,
    gemma2,
    hunyuan_video_vae,
    llama_config,
    one_block_vae,
    picture,
    qwen25_vl,
    qwen_image_vae,
    qwen_tokenizer,
    wan_vae,
)
from tests.tiny_pipelines import clip_tokenizer, t5, t5_tokenizer


@family(image=picture, height=32, width=32, max_sequence_length=16)
def qwen_image_edit() -> QwenImageEditPipeline:
    """The encoder splits by `grid_thw.tolist()`."""
    tokenizer = qwen_tokenizer()
    return QwenImageEditPipeline(
        transformer=qwen_image_transformer(),
        vae=qwen_image_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=qwen25_vl(),
        tokenizer=tokenizer,
        processor=SeeingProcessor(tokenizer),
    )


@family(image=picture, height=32, width=32, max_sequence_length=16)
def joy_image_edit() -> JoyImageEditPipeline:
    """The same with Qwen 3 VL."""
    tokenizer = qwen_tokenizer()
    transformer = JoyImageEditTransformer3DModel(
        patch_size=[1, 2, 2],
        in_channels=16,
        hidden_size=32,
        num_attention_heads=2,
        text_dim=16,
        num_layers=1,
        rope_dim_list=[4, 6, 6],
        theta=256,
    )
    pipe = JoyImageEditPipeline(
        transformer=transformer,
        vae=wan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=encoders.qwen3_vl(),
        tokenizer=tokenizer,
        processor=SeeingProcessor(tokenizer),
    )
    # It would make a megapixel of what is asked for.
    pipe.vae_image_processor.get_default_height_width = lambda image, height, width: (height, width)
    return pipe


@family(height=32, width=32)
def lumina2() -> Lumina2Pipeline:
    """The rotary embedder takes `attention_mask.sum().tolist()`."""
    transformer = Lumina2Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=8,
        num_layers=2,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=16,
        scaling_factor=1.0,
        axes_dim_rope=(4, 2, 2),
        cap_feat_dim=8,
    )
    return Lumina2Pipeline(
        transformer=transformer,
        vae=one_block_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=gemma2(),
        tokenizer=tokenizers.gemma(),
    )


@family(height=16, width=16, num_frames=7, max_sequence_length=16)
def mochi() -> MochiPipeline:
    """Attention takes `nonzero` of the mask."""
    transformer = MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        qk_norm="rms_norm",
        text_embed_dim=32,
        time_embed_dim=4,
        activation_fn="swiglu",
        max_sequence_length=16,
    )
    torch.nn.init.zeros_(transformer.pos_frequencies)
    vae = AutoencoderKLMochi(
        latent_channels=12,
        out_channels=3,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    return MochiPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
    )


@family(height=16, width=16)
def hunyuan_image() -> HunyuanImagePipeline:
    """Two prompts' masks are joined by value."""
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1),
        guidance_embeds=False,
        text_embed_dim=32,
        text_embed_2_dim=32,
        rope_axes_dim=(4, 4),
    )
    vae = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=1,
        scaling_factor=0.476986,
        spatial_compression_ratio=8,
        sample_size=128,
    )
    return HunyuanImagePipeline(
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=qwen25_vl(32),
        tokenizer=qwen_tokenizer(),
        text_encoder_2=byte_t5(),
        tokenizer_2=hf.ByT5Tokenizer(),
        guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2),
        ocr_guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=3),
    )


def byte_t5() -> hf.T5EncoderModel:
    config = hf.T5Config(
        vocab_size=400, d_model=32, d_kv=4, d_ff=16, num_layers=2, num_heads=2, is_encoder_decoder=False
    )
    return hf.T5EncoderModel(config)


@family(
    image=picture,
    height=32,
    width=32,
    num_frames=9,
    latent_window_size=3,
    prompt_template={"template": "{}", "crop_start": 0},
)
def framepack() -> HunyuanVideoFramepackPipeline:
    """The pipeline knows the frames' indices; the transformer computes with them."""
    transformer = HunyuanVideoFramepackTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=32,
        rope_axes_dim=(2, 4, 4),
        image_condition_type=None,
        has_image_proj=True,
        image_proj_dim=32,
        has_clean_x_embedder=True,
    )
    return HunyuanVideoFramepackPipeline(
        transformer=transformer,
        vae=hunyuan_video_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=hf.LlamaModel(llama_config()),
        tokenizer=tokenizers.plain(),
        text_encoder_2=clip_text(),
        tokenizer_2=clip_tokenizer(),
        image_encoder=encoders.siglip(),
        feature_extractor=hf.SiglipImageProcessor(size={"height": 30, "width": 30}),
    )


@family(height=16, width=16, num_frames=9, output_type="pt")
def hunyuan_video15() -> HunyuanVideo15Pipeline:
    """It asks whether an image embedding is all zeros."""
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=16,
        text_embed_2_dim=32,
        image_embed_dim=12,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
        task_type="t2v",
    )
    vae = AutoencoderKLHunyuanVideo15(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    text = encoders.qwen_text(QWEN_VOCABULARY)
    return HunyuanVideo15Pipeline(
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=hf.Qwen2_5_VLTextModel(hf.Qwen2_5_VLConfig(text_config=text).text_config),
        tokenizer=qwen_tokenizer(),
        text_encoder_2=byte_t5(),
        tokenizer_2=hf.ByT5Tokenizer(),
        guider=ClassifierFreeGuidance(guidance_scale=1.0),
    )
