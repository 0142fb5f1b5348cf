"""HiDream-I1."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HiDreamImagePipeline, HiDreamImageTransformer2DModel

from vramtune.catalog.empty import empty
from vramtune.catalog.encoders import clip_big_g, clip_l_projected, llama31_8b, t5_xxl
from vramtune.catalog.pipelines.parts import flux1_vae
from vramtune.catalog.tokenizers import clip_tokenizer, llama3_tokenizer, t5_tokenizer

NUM_CLIP_POSITIONS = 218
"""Where the pipeline cuts prompts; the encoders' own configurations, which are not read, may have a few more."""


def hidream_i1_full() -> HiDreamImagePipeline:
    """HiDream-I1 Full: 16 double and 32 single blocks of four routed experts (ComfyUI's `model_detection.py`)."""
    dtype = torch.bfloat16
    return HiDreamImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flux1_vae(dtype),
        text_encoder=clip_l_projected(dtype, num_positions=NUM_CLIP_POSITIONS),
        tokenizer=clip_tokenizer(max_length=NUM_CLIP_POSITIONS),
        text_encoder_2=clip_big_g(dtype, num_positions=NUM_CLIP_POSITIONS),
        tokenizer_2=clip_tokenizer(pad_token="!", max_length=NUM_CLIP_POSITIONS),
        text_encoder_3=t5_xxl(dtype),
        tokenizer_3=t5_tokenizer(),
        text_encoder_4=llama31_8b(dtype),
        tokenizer_4=llama3_tokenizer(pad_token="<|end_of_text|>", pad_token_id=128001),
        transformer=empty(
            lambda: HiDreamImageTransformer2DModel(
                patch_size=2,
                in_channels=16,
                out_channels=16,
                caption_channels=[4096, 4096],
                axes_dims_rope=(64, 32, 32),
                llama_layers=[*range(32), *[31] * 16],
            ),
            dtype=dtype,
        ),
    )
