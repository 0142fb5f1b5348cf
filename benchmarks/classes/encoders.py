"""Text and image encoders of a few kilobytes with random weights, and the processors that go with them."""

from typing import Any

import torch
import transformers as hf

from benchmarks.classes import tokenizers

VISION_SPECIALS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
VISION_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
TINY_QWEN_FIRST_SPECIAL = 256
"""Where a vocabulary of 300 has Qwen's special tokens: behind the bytes."""
T5_SIZES: dict[str, Any] = {"vocab_size": 1103, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 5, "num_heads": 4}


def t5_config() -> hf.T5Config:
    return hf.T5Config(**T5_SIZES, decoder_start_token_id=0)


def umt5() -> hf.UMT5EncoderModel:
    return hf.UMT5EncoderModel(hf.UMT5Config(**T5_SIZES))


def bert() -> hf.BertModel:
    config = hf.BertConfig(
        vocab_size=1124, hidden_size=32, num_hidden_layers=5, num_attention_heads=4, intermediate_size=37
    )
    return hf.BertModel(config)


def llama() -> hf.LlamaForCausalLM:
    config = hf.LlamaConfig(
        vocab_size=1000, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    return hf.LlamaForCausalLM(config)


def siglip() -> hf.SiglipVisionModel:
    config = hf.SiglipVisionConfig(
        hidden_size=32, image_size=30, patch_size=2, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37
    )
    return hf.SiglipVisionModel(config)


def gemma3() -> hf.Gemma3ForConditionalGeneration:
    text = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "sliding_window": 64,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=127)
    return hf.Gemma3ForConditionalGeneration(config)


def qwen_text(vocab_size: int) -> dict[str, Any]:
    """Two layers, with positions in three axes."""
    return {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": vocab_size,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        "rope_theta": 1e6,
    }


def qwen2_vl() -> hf.Qwen2VLForConditionalGeneration:
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 1, "patch_size": 14}
    config = hf.Qwen2VLConfig(text_config=qwen_text(152064), vision_config=vision)
    return hf.Qwen2VLForConditionalGeneration(config)


def qwen3_vl() -> hf.Qwen3VLForConditionalGeneration:
    ids = tokenizers.numbered(tokenizers.QWEN_SPECIALS, TINY_QWEN_FIRST_SPECIAL)
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
        "patch_size": 14,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 64,
    }
    specials = {name: ids[token] for name, token in zip(VISION_SPECIALS, VISION_TOKENS, strict=True)}
    config = hf.Qwen3VLConfig(text_config=qwen_text(300) | {"head_dim": 8}, vision_config=vision, **specials)
    return hf.Qwen3VLForConditionalGeneration(config)


def qwen_processor(kind: str, first_special: int) -> Any:
    """The processor of Qwen 2 VL or, where `kind` names it, of Qwen 3 VL; images of at most 16 patches."""
    size = {"shortest_edge": 4 * 28 * 28, "longest_edge": 16 * 28 * 28}
    is_third = kind == "Qwen3VLProcessor"
    return (hf.Qwen3VLProcessor if is_third else hf.Qwen2VLProcessor)(
        image_processor=hf.Qwen2VLImageProcessor(patch_size=14, temporal_patch_size=2, merge_size=2, size=size),
        tokenizer=tokenizers.qwen(first_special),
        video_processor=(hf.Qwen3VLVideoProcessor if is_third else hf.Qwen2VLVideoProcessor)(),
        chat_template=tokenizers.QWEN_TEMPLATE,
    )


def glm_image_processor() -> hf.GlmImageProcessor:
    names = {"image_token": "<|image|>", "grid_bos_token": "<sop>", "grid_eos_token": "<eop>"}
    tokenizer = tokenizers.plain((*tokenizers.PLAIN_SPECIALS, *names.values()), template=tokenizers.QWEN_TEMPLATE)
    for attribute, token in names.items():
        setattr(tokenizer, attribute, token)
    return hf.GlmImageProcessor(
        image_processor=hf.GlmImageImageProcessor(), tokenizer=tokenizer, chat_template=tokenizers.QWEN_TEMPLATE
    )


def pixtral_processor() -> hf.PixtralProcessor:
    specials = ("<unk>", "[IMG]", "<s>", "</s>", "<pad>", "[IMG_BREAK]", "[IMG_END]")
    return hf.PixtralProcessor(
        image_processor=hf.PixtralImageProcessor(patch_size=6),
        tokenizer=tokenizers.plain(specials, template=tokenizers.TEXT_TEMPLATE),
        patch_size=6,
        chat_template=tokenizers.TEXT_TEMPLATE,
    )


def chatglm() -> Any:
    """Kolors' text encoder, which comes without values (`skip_init`): what memory held would be its weights."""
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel

    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=1000,
        hidden_size=8,
        ffn_hidden_size=37,
        kv_channels=8,
        num_attention_heads=1,
        seq_length=256,
        multi_query_attention=True,
        multi_query_group_num=1,
        add_qkv_bias=True,
        rmsnorm=True,
        post_layer_norm=True,
        bias_dropout_fusion=True,
        original_rope=True,
    )
    model = ChatGLMModel(config)
    for name, weight in model.named_parameters():
        if name.endswith("layernorm.weight"):
            torch.nn.init.ones_(weight)
        else:
            torch.nn.init.normal_(weight, std=0.02)
    return model
