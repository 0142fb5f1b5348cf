"""Configurations of text encoders at real size, and tokenizers made in code.

The tokenizers have the real lengths and special tokens, but an alphabet instead of a vocabulary: one token per
letter, so prompts of more than 75 letters are reported as truncated. Every pipeline pads to a fixed length, so
shapes are the same as with the real tokenizer.
"""

import string

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTokenizer, T5Config, T5Tokenizer, UMT5Config

CLIP_BOS_TOKEN_ID = 49406
CLIP_EOS_TOKEN_ID = 49407

_T5_XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}


def clip_l() -> CLIPTextConfig:
    """The text half of https://huggingface.co/openai/clip-vit-large-patch14."""
    return _clip(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, hidden_act="quick_gelu")


def clip_big_g() -> CLIPTextConfig:
    """The text half of https://huggingface.co/laion/CLIP-ViT-bigG-14-laion2B-39B-b160k."""
    return _clip(hidden_size=1280, num_hidden_layers=32, num_attention_heads=20, hidden_act="gelu")


def _clip(*, hidden_size: int, **config: object) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        projection_dim=hidden_size,
        max_position_embeddings=77,
        # published with the ids 0 and 2, which CLIP's code takes for "the largest id": the same token
        bos_token_id=CLIP_BOS_TOKEN_ID,
        eos_token_id=CLIP_EOS_TOKEN_ID,
        **config,
    )


def t5_xxl() -> T5Config:
    """The encoder of https://huggingface.co/google/t5-v1_1-xxl."""
    return T5Config(vocab_size=32128, **_T5_XXL)


def umt5_xxl() -> UMT5Config:
    """The encoder of https://huggingface.co/google/umt5-xxl."""
    return UMT5Config(vocab_size=256384, **_T5_XXL)


def clip_tokenizer(*, pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """A byte-level tokenizer without merges that pads to 77 tokens."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    vocab = {token: index for index, token in enumerate(tokens)}
    vocab |= {"<|startoftext|>": CLIP_BOS_TOKEN_ID, "<|endoftext|>": CLIP_EOS_TOKEN_ID}
    return CLIPTokenizer(vocab=vocab, merges=[], pad_token=pad_token, model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    """A tokenizer of letters and digits that pads with 0 and ends with 1, as T5's and UMT5's do; at most 512 tokens."""
    letters = [(letter, -3.0) for letter in string.ascii_letters + string.digits + string.punctuation]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *letters]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)
