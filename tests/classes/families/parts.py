"""Parts that several families share."""

from typing import Any

import numpy as np
import torch
import transformers as hf
from diffusers import AutoencoderKL, AutoencoderKLHunyuanVideo, AutoencoderKLQwenImage, AutoencoderKLWan
from PIL import Image

from benchmarks.classes import tokenizers
from benchmarks.classes.encoders import TINY_QWEN_FIRST_SPECIAL, qwen_text

QWEN_VOCABULARY = 300
"""The published 152064 would take most of the time, for the logits of every token."""


def picture(size: int = 32) -> Image.Image:
    """Noise, the same each time."""
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pixels(size: int = 64) -> torch.Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def clip_text(projection: bool = False, **config: Any) -> Any:
    """CLIP's text encoder for `tiny_pipelines.clip_tokenizer`."""
    sizes: dict[str, Any] = {
        "vocab_size": 1000,
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": 32,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    made = hf.CLIPTextConfig(**sizes | config)
    return hf.CLIPTextModelWithProjection(made) if projection else hf.CLIPTextModel(made)


def clip_vision(image_size: int = 32, **config: Any) -> hf.CLIPVisionModelWithProjection:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "projection_dim": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "patch_size": 16,
    }
    return hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(image_size=image_size, **sizes | config))


def clip_image_processor(size: int = 32) -> Any:
    return hf.CLIPImageProcessor(crop_size=size, size=size)


def qwen_tokenizer() -> hf.Qwen2Tokenizer:
    """Qwen's, with a small vocabulary."""
    return tokenizers.qwen(TINY_QWEN_FIRST_SPECIAL)


def qwen25_vl(hidden_size: int = 16) -> hf.Qwen2_5_VLForConditionalGeneration:
    """Qwen 2.5 VL for `qwen_tokenizer`."""
    sections = [hidden_size // 16, hidden_size // 16, hidden_size // 8]
    text = qwen_text(QWEN_VOCABULARY) | {"hidden_size": hidden_size, "intermediate_size": hidden_size}
    text["rope_scaling"] = text["rope_scaling"] | {"mrope_section": sections}
    vision = {
        "depth": 2,
        "hidden_size": hidden_size,
        "intermediate_size": hidden_size,
        "num_heads": 2,
        "out_hidden_size": hidden_size,
    }
    ids = tokenizers.numbered(tokenizers.QWEN_SPECIALS, TINY_QWEN_FIRST_SPECIAL)
    config = hf.Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def qwen3(kind: Any = hf.Qwen3Model, hidden_size: int = 16) -> Any:
    config = hf.Qwen3Config(
        hidden_size=hidden_size,
        intermediate_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=QWEN_VOCABULARY,
        max_position_embeddings=512,
    )
    return kind(config)


def llama_config() -> hf.LlamaConfig:
    return hf.LlamaConfig(
        hidden_size=16,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=1000,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )


def gemma2() -> hf.Gemma2Model:
    config = hf.Gemma2Config(
        vocab_size=128,
        head_dim=4,
        hidden_size=8,
        intermediate_size=8,
        num_attention_heads=2,
        num_hidden_layers=2,
        num_key_value_heads=2,
        sliding_window=2,
    )
    return hf.Gemma2Model(config)


def one_block_vae(latent_channels: int = 4, **config: Any) -> AutoencoderKL:
    """An image VAE that does not scale down."""
    return AutoencoderKL(
        sample_size=32,
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
        **config,
    )


def wan_vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )


def qwen_image_vae() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(
        base_dim=24,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def hunyuan_video_vae(latent_channels: int = 4, num_blocks: int = 4) -> AutoencoderKLHunyuanVideo:
    return AutoencoderKLHunyuanVideo(
        latent_channels=latent_channels,
        down_block_types=("HunyuanVideoDownBlock3D",) * num_blocks,
        up_block_types=("HunyuanVideoUpBlock3D",) * num_blocks,
        block_out_channels=(8,) * num_blocks,
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=num_blocks > 2,
    )


class SeeingProcessor:
    """Text and an image for a Qwen model: hf's own processor wants torchvision.

    Every image is 4 x 4 patches, which the model merges to 4 tokens.
    """

    def __init__(self, tokenizer: Any, patch_size: int = 14) -> None:
        self.tokenizer, self.patch_size = tokenizer, patch_size

    def __call__(self, text: Any, images: Any = None, videos: Any = None, **options: Any) -> hf.BatchFeature:
        """As a processor is called."""
        if images is None:
            return self.tokenizer(text, **options)
        texts = [text] if isinstance(text, str) else text
        pads = [one.replace("<|image_pad|>", "<|image_pad|>" * 4) for one in texts]
        made = dict(self.tokenizer(pads, **options))
        num_values = 3 * 2 * self.patch_size**2
        made["pixel_values"] = torch.rand(16, num_values, generator=torch.Generator().manual_seed(0))
        made["image_grid_thw"] = torch.tensor([[1, 4, 4]])
        image_token = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        made["mm_token_type_ids"] = (made["input_ids"] == image_token).long()
        return hf.BatchFeature(made)

    def decode(self, *args: Any, **options: Any) -> str:
        return self.tokenizer.decode(*args, **options)
