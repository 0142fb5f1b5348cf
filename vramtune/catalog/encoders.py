"""Text encoders at real size, from their published configurations, on the meta device.

What a configuration below leaves out has the published value as its class default.
"""

from typing import Any

import torch
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLTextModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from vramtune.catalog.empty import empty
from vramtune.catalog.tokenizers import CLIP_BOS_TOKEN_ID, CLIP_EOS_TOKEN_ID

_T5_XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
_LLAMA3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}


def clip_l(dtype: torch.dtype) -> CLIPTextModel:
    """https://huggingface.co/openai/clip-vit-large-patch14: the text half."""
    return empty(lambda: CLIPTextModel(_clip_l()), dtype=dtype)


def clip_l_projected(dtype: torch.dtype, *, num_positions: int = 77) -> CLIPTextModelWithProjection:
    """CLIP-L with its projection."""
    return empty(lambda: CLIPTextModelWithProjection(_clip_l(num_positions)), dtype=dtype)


def clip_big_g(dtype: torch.dtype, *, num_positions: int = 77) -> CLIPTextModelWithProjection:
    """https://huggingface.co/laion/CLIP-ViT-bigG-14-laion2B-39B-b160k: the text half."""
    config = _clip(
        hidden_size=1280,
        num_hidden_layers=32,
        num_attention_heads=20,
        hidden_act="gelu",
        max_position_embeddings=num_positions,
    )
    return empty(lambda: CLIPTextModelWithProjection(config), dtype=dtype)


def _clip_l(num_positions: int = 77) -> CLIPTextConfig:
    return _clip(
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        hidden_act="quick_gelu",
        max_position_embeddings=num_positions,
    )


def _clip(*, hidden_size: int, **config: object) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        projection_dim=hidden_size,
        # published with the ids 0 and 2, which CLIP's code takes for "the largest id": the same token
        bos_token_id=CLIP_BOS_TOKEN_ID,
        eos_token_id=CLIP_EOS_TOKEN_ID,
        **config,
    )


def t5_xxl(dtype: torch.dtype) -> T5EncoderModel:
    """https://huggingface.co/google/t5-v1_1-xxl: the encoder."""
    return empty(lambda: T5EncoderModel(T5Config(vocab_size=32128, **_T5_XXL)), dtype=dtype)


def umt5_xxl(dtype: torch.dtype) -> UMT5EncoderModel:
    """https://huggingface.co/google/umt5-xxl: the encoder."""
    return empty(lambda: UMT5EncoderModel(UMT5Config(vocab_size=256384, **_T5_XXL)), dtype=dtype)


def mt5_xl(dtype: torch.dtype) -> T5EncoderModel:
    """https://huggingface.co/google/mt5-xl: the encoder."""
    config = T5Config(
        vocab_size=250112, d_model=2048, d_kv=64, d_ff=5120, num_layers=24, num_heads=32, feed_forward_proj="gated-gelu"
    )
    return empty(lambda: T5EncoderModel(config), dtype=dtype)


def bert_large(dtype: torch.dtype) -> BertModel:
    """https://huggingface.co/hfl/chinese-roberta-wwm-ext-large with the vocabulary of HunyuanDiT."""
    config = BertConfig(
        vocab_size=47020, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
    )
    return empty(lambda: BertModel(config), dtype=dtype)


def byt5_glyph(dtype: torch.dtype) -> T5EncoderModel:
    """google/byt5-small with the colors and fonts of Glyph-SDXL-v2 as tokens: 1510 of them.

    The configuration is ComfyUI's `text_encoders/byt5_config_small_glyph.json`.
    """
    config = T5Config(
        vocab_size=1510, d_model=1472, d_kv=64, d_ff=3584, num_layers=12, num_heads=6, feed_forward_proj="gated-gelu"
    )
    return empty(lambda: T5EncoderModel(config), dtype=dtype)


def llama31_8b(dtype: torch.dtype) -> LlamaForCausalLM:
    """https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct."""
    config = LlamaConfig(vocab_size=128256, max_position_embeddings=131072, **_LLAMA3_8B)
    return empty(lambda: LlamaForCausalLM(config), dtype=dtype)


def llava_llama3_8b(dtype: torch.dtype) -> LlamaModel:
    """https://huggingface.co/hunyuanvideo-community/HunyuanVideo: Llama 3 with 64 tokens more, without its head."""
    config = LlamaConfig(vocab_size=128320, max_position_embeddings=8192, **_LLAMA3_8B)
    return empty(lambda: LlamaModel(config), dtype=dtype)


def qwen3_4b(dtype: torch.dtype) -> Qwen3Model:
    """https://huggingface.co/Qwen/Qwen3-4B without its head, which is the embedding."""
    return empty(lambda: Qwen3Model(_qwen3_4b()), dtype=dtype)


def qwen3_4b_causal(dtype: torch.dtype) -> Qwen3ForCausalLM:
    """https://huggingface.co/Qwen/Qwen3-4B."""
    return empty(lambda: Qwen3ForCausalLM(_qwen3_4b()), dtype=dtype)


def qwen3_8b_causal(dtype: torch.dtype) -> Qwen3ForCausalLM:
    """https://huggingface.co/Qwen/Qwen3-8B."""
    config = Qwen3Config(**_qwen3_8b_sizes(), max_position_embeddings=40960, tie_word_embeddings=False)
    return empty(lambda: Qwen3ForCausalLM(config), dtype=dtype)


def _qwen3_4b() -> Qwen3Config:
    return Qwen3Config(**_qwen3_4b_sizes(), max_position_embeddings=40960, tie_word_embeddings=True)


def _qwen3_4b_sizes() -> dict[str, Any]:
    return _qwen3_sizes(hidden_size=2560, intermediate_size=9728)


def _qwen3_8b_sizes() -> dict[str, Any]:
    return _qwen3_sizes(hidden_size=4096, intermediate_size=12288)


def _qwen3_sizes(**sizes: int) -> dict[str, Any]:
    return {
        "vocab_size": 151936,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        **sizes,
    }


def qwen3_vl_4b(dtype: torch.dtype) -> Qwen3VLModel:
    """https://huggingface.co/Qwen/Qwen3-VL-4B-Instruct without its head, which is the embedding."""
    return empty(lambda: Qwen3VLModel(_qwen3_vl_4b()), dtype=dtype)


def qwen3_vl_4b_causal(dtype: torch.dtype) -> Qwen3VLForConditionalGeneration:
    """https://huggingface.co/Qwen/Qwen3-VL-4B-Instruct."""
    return empty(lambda: Qwen3VLForConditionalGeneration(_qwen3_vl_4b()), dtype=dtype)


def _qwen3_vl_4b() -> Qwen3VLConfig:
    return _qwen3_vl(
        _qwen3_4b_sizes(),
        tied=True,
        depth=24,
        hidden_size=1024,
        intermediate_size=4096,
        out_hidden_size=2560,
        deepstack_visual_indexes=[5, 11, 17],
    )


_QWEN3_VL_TOWER: dict[str, Any] = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "deepstack_visual_indexes": [8, 16, 24],
}


def qwen3_vl_8b(dtype: torch.dtype) -> Qwen3VLModel:
    """https://huggingface.co/Qwen/Qwen3-VL-8B-Instruct without its head."""
    return empty(lambda: Qwen3VLModel(_qwen3_vl_8b()), dtype=dtype)


def qwen3_vl_8b_causal(dtype: torch.dtype) -> Qwen3VLForConditionalGeneration:
    """https://huggingface.co/Qwen/Qwen3-VL-8B-Instruct."""
    return empty(lambda: Qwen3VLForConditionalGeneration(_qwen3_vl_8b()), dtype=dtype)


def qwen3_vl_32b_causal(dtype: torch.dtype) -> Qwen3VLForConditionalGeneration:
    """https://huggingface.co/Qwen/Qwen3-VL-32B-Instruct."""
    sizes = _qwen3_sizes(hidden_size=5120, intermediate_size=25600, num_hidden_layers=64, num_attention_heads=64)
    config = _qwen3_vl(sizes, tied=False, out_hidden_size=5120, **_QWEN3_VL_TOWER)
    return empty(lambda: Qwen3VLForConditionalGeneration(config), dtype=dtype)


def _qwen3_vl_8b() -> Qwen3VLConfig:
    return _qwen3_vl(_qwen3_8b_sizes(), tied=False, out_hidden_size=4096, **_QWEN3_VL_TOWER)


def _qwen3_vl(sizes: dict[str, Any], *, tied: bool, **vision: object) -> Qwen3VLConfig:
    rope = {"rope_type": "default", "rope_theta": 5_000_000.0, "mrope_interleaved": True, "mrope_section": [24, 20, 20]}
    text = {**sizes, "max_position_embeddings": 262144, "rope_parameters": rope}
    return Qwen3VLConfig(text_config=text, vision_config=dict(vision), tie_word_embeddings=tied)


def qwen25_vl_7b(dtype: torch.dtype) -> Qwen2_5_VLForConditionalGeneration:
    """https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct."""
    return empty(lambda: Qwen2_5_VLForConditionalGeneration(_qwen25_vl_7b()), dtype=dtype)


def qwen25_vl_7b_text(dtype: torch.dtype) -> Qwen2_5_VLTextModel:
    """https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct: its language model, without vision and head."""
    return empty(lambda: Qwen2_5_VLTextModel(_qwen25_vl_7b().text_config), dtype=dtype)


def _qwen25_vl_7b() -> Qwen2_5_VLConfig:
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]}
    text = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128000,
        "rope_parameters": rope,
    }
    vision = {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)


def mistral_small_24b(dtype: torch.dtype) -> Mistral3ForConditionalGeneration:
    """https://huggingface.co/mistralai/Mistral-Small-3.2-24B-Instruct-2506, with its vision tower."""
    text = {
        "model_type": "mistral",
        "vocab_size": 131072,
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
    }
    vision = {"model_type": "pixtral", "image_size": 1540, "patch_size": 14}
    config = Mistral3Config(text_config=text, vision_config=vision, tie_word_embeddings=False)
    return empty(lambda: Mistral3ForConditionalGeneration(config), dtype=dtype)


_GEMMA_12B = {
    "hidden_size": 3840,
    "intermediate_size": 15360,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "sliding_window": 1024,
}


def gemma3_12b(dtype: torch.dtype) -> Gemma3ForConditionalGeneration:
    """https://huggingface.co/google/gemma-3-12b-it, with its vision tower."""
    text = {**_GEMMA_12B, "vocab_size": 262208, "max_position_embeddings": 131072}
    vision = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
        "vision_use_head": False,
    }
    config = Gemma3Config(text_config=text, vision_config=vision)
    return empty(lambda: Gemma3ForConditionalGeneration(config), dtype=dtype)


def gemma4_12b(dtype: torch.dtype) -> Gemma4UnifiedForConditionalGeneration:
    """https://huggingface.co/google/gemma-4-12B-it: no towers, images and sounds enter as they are."""
    text = {
        **_GEMMA_12B,
        "vocab_size": 262144,
        "num_global_key_value_heads": 1,
        "global_head_dim": 512,
        "attention_k_eq_v": True,
        "final_logit_softcapping": 30.0,
    }
    config = Gemma4UnifiedConfig(text_config=text, vision_config={}, audio_config={})
    return empty(lambda: Gemma4UnifiedForConditionalGeneration(config), dtype=dtype)
