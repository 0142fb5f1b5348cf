"""HunyuanDiT, HunyuanVideo and HunyuanVideo 1.5."""

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)

from vramtune.catalog.empty import empty
from vramtune.catalog.encoders import bert_large, byt5_glyph, clip_l, llava_llama3_8b, mt5_xl, qwen25_vl_7b_text
from vramtune.catalog.pipelines.parts import sd_vae
from vramtune.catalog.tokenizers import (
    bert_tokenizer,
    byt5_tokenizer,
    clip_tokenizer,
    llama3_tokenizer,
    qwen_tokenizer,
    t5_tokenizer,
)


def hunyuan_dit() -> HunyuanDiTPipeline:
    """HunyuanDiT 1.2: 40 blocks, the later ones joined to the earlier; SDXL's VAE; without its safety checker."""
    dtype = torch.float16
    return HunyuanDiTPipeline(
        vae=sd_vae(dtype, sample_size=512, scaling_factor=0.13025),
        text_encoder=bert_large(dtype),
        tokenizer=bert_tokenizer(),
        transformer=empty(_hunyuan_dit_transformer, dtype=dtype),
        scheduler=DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.018,
            beta_schedule="scaled_linear",
            clip_sample=False,
            prediction_type="v_prediction",
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=mt5_xl(dtype),
        tokenizer_2=t5_tokenizer(),
    )


def _hunyuan_dit_transformer() -> HunyuanDiT2DModel:
    return HunyuanDiT2DModel(
        in_channels=4,
        patch_size=2,
        sample_size=128,
        hidden_size=1408,
        num_layers=40,
        mlp_ratio=4.3637,
        use_style_cond_and_image_meta_size=False,
    )


def hunyuan_video() -> HunyuanVideoPipeline:
    """HunyuanVideo, guidance distilled; all but the transformer in float16, as the model card says."""
    dtype = torch.float16
    return HunyuanVideoPipeline(
        text_encoder=llava_llama3_8b(dtype),
        tokenizer=llama3_tokenizer(pad_token="<pad>", pad_token_id=128257),
        transformer=empty(HunyuanVideoTransformer3DModel, dtype=torch.bfloat16),
        vae=empty(AutoencoderKLHunyuanVideo, dtype=dtype),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=clip_l(dtype),
        tokenizer_2=clip_tokenizer(),
    )


def hunyuan_video_15() -> HunyuanVideo15Pipeline:
    """HunyuanVideo 1.5 text to video, 480p (`convert_hunyuan_video1_5_to_diffusers.py`)."""
    dtype = torch.bfloat16
    return HunyuanVideo15Pipeline(
        text_encoder=qwen25_vl_7b_text(dtype),
        tokenizer=qwen_tokenizer(),
        transformer=empty(HunyuanVideo15Transformer3DModel, dtype=dtype),
        vae=empty(AutoencoderKLHunyuanVideo15, dtype=dtype),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder_2=byt5_glyph(dtype),
        tokenizer_2=byt5_tokenizer(),
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
    )
