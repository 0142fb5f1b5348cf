"""HunyuanVideo and HunyuanVideo 1.5."""

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)

from vramtune.catalog.empty import empty
from vramtune.catalog.encoders import byt5_glyph, clip_l, llava_llama3_8b, qwen25_vl_7b_text
from vramtune.catalog.tokenizers import byt5_tokenizer, clip_tokenizer, llama3_tokenizer, qwen_tokenizer


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
