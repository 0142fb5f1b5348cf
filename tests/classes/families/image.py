"""Transformers that make images."""

import transformers as hf
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
)

from benchmarks.classes import encoders, tokenizers
from tests.classes.families.family import family
from tests.classes.families.parts import gemma2, one_block_vae, qwen3, qwen25_vl, qwen_image_vae, qwen_tokenizer
from tests.tiny_pipelines import image_vae, t5, t5_tokenizer


@family(class_labels=[1], num_inference_steps=2)
def dit() -> DiTPipeline:
    """DiT: classes instead of prompts."""
    transformer = DiTTransformer2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=4,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=8,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    return DiTPipeline(transformer=transformer, vae=image_vae(), scheduler=DDIMScheduler())


@family(height=32, width=32, use_resolution_binning=False, clean_caption=False)
def pixart() -> PixArtAlphaPipeline:
    """PixArt."""
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        cross_attention_dim=24,
        out_channels=8,
    )
    return PixArtAlphaPipeline(
        transformer=transformer, vae=image_vae(), scheduler=DDIMScheduler(), text_encoder=t5(), tokenizer=t5_tokenizer()
    )


@family(height=32, width=32, use_resolution_binning=False, max_sequence_length=16, complex_human_instruction=None)
def sana() -> SanaPipeline:
    """Sana: linear attention, and a VAE of residual blocks."""
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=32,
    )
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )
    return SanaPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=gemma2(),
        tokenizer=tokenizers.gemma(),
    )


@family(height=8, width=8, max_sequence_length=48)
def chroma() -> ChromaPipeline:
    """Chroma: modulation from one small network."""
    transformer = ChromaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=transformer,
        vae=one_block_vae(1),
    )


@family(height=8, width=8, max_sequence_length=64, text_encoder_out_layers=(1,))
def flux2_klein() -> Flux2KleinPipeline:
    """FLUX.2 with a language model's layers as the prompt."""
    transformer = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        sample_size=32,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=qwen3(hf.Qwen3ForCausalLM),
        tokenizer=qwen_tokenizer(),
        transformer=transformer,
        vae=vae,
    )


@family(height=32, width=32, max_sequence_length=16)
def qwen_image() -> QwenImagePipeline:
    """Qwen-Image."""
    return QwenImagePipeline(
        transformer=qwen_image_transformer(),
        vae=qwen_image_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=qwen25_vl(),
        tokenizer=qwen_tokenizer(),
    )


def qwen_image_transformer() -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=16,
        guidance_embeds=False,
        axes_dims_rope=(8, 4, 4),
    )


@family(height=16, width=16, max_sequence_length=16, negative_prompt="bad")
def cogview4() -> CogView4Pipeline:
    """CogView4."""
    transformer = CogView4Transformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=4,
        out_channels=4,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=4,
    )
    glm = hf.GlmConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=3,
    )
    return CogView4Pipeline(
        transformer=transformer,
        vae=image_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"),
        text_encoder=hf.GlmForCausalLM(glm),
        tokenizer=tokenizers.plain(padding_side="left"),
    )


@family(height=64, width=64, use_resolution_binning=False)
def hunyuan_dit() -> HunyuanDiTPipeline:
    """HunyuanDiT: BERT and T5."""
    transformer = HunyuanDiT2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        hidden_size=24,
        activation_fn="gelu-approximate",
    )
    vae = AutoencoderKL(  # the pipeline counts on a factor of 8
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
    )
    return HunyuanDiTPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=DDPMScheduler(),
        text_encoder=encoders.bert(),
        tokenizer=tokenizers.bert(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@family(height=32, width=32)
def aura_flow() -> AuraFlowPipeline:
    """AuraFlow."""
    transformer = AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        out_channels=4,
        pos_embed_max_size=256,
    )
    return AuraFlowPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=encoders.umt5(),
        tokenizer=t5_tokenizer(),
        transformer=transformer,
        vae=image_vae(),
    )
