"""Tokenizers made in code, without vocabulary files.

CLIP's and T5's have the real special tokens and an alphabet: one token per letter, so they report prompts of more than
75 letters as truncated; their pipelines pad to a fixed length, so the shapes are those of the real tokenizer. Those of
language models, whose pipelines do not all pad, count one token per word, number and punctuation mark: as the real ones
do for English (the prompt templates of Qwen-Image and HunyuanVideo 1.5 get the 34, 64 and 108 tokens that diffusers'
code says they have).
"""

import string
from typing import Any

import torch
from PIL import Image
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Split
from transformers import (
    BatchFeature,
    ByT5Tokenizer,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    T5Tokenizer,
)

CLIP_BOS_TOKEN_ID = 49406
CLIP_EOS_TOKEN_ID = 49407

WORD = "<a word>"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""What Qwen's byte-pair encoding never joins (its `pretokenize_regex`, without English contractions)."""

CHAT = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}\
{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""Qwen's chat template, for text; the other models' differ by a few tokens that padding swallows."""


def clip_tokenizer(*, pad_token: str = "<|endoftext|>", max_length: int = 77) -> CLIPTokenizer:
    """Byte-level, without merges; pads to 77."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    vocab = {token: index for index, token in enumerate(tokens)}
    vocab |= {"<|startoftext|>": CLIP_BOS_TOKEN_ID, "<|endoftext|>": CLIP_EOS_TOKEN_ID}
    return CLIPTokenizer(vocab=vocab, merges=[], pad_token=pad_token, model_max_length=max_length)


def t5_tokenizer() -> T5Tokenizer:
    """Letters and digits; pads with 0 and ends with 1, as T5's and UMT5's do; at most 512 tokens."""
    letters = [(letter, -3.0) for letter in string.ascii_letters + string.digits + string.punctuation]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *letters]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)


def byt5_tokenizer() -> ByT5Tokenizer:
    """One token per byte, as ByT5 has it: there is no vocabulary to leave out."""
    return ByT5Tokenizer()


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """https://huggingface.co/hfl/chinese-roberta-wwm-ext-large; HunyuanDiT pads to 77."""
    return _word_tokenizer(
        {"[PAD]": 0, "[CLS]": 101, "[SEP]": 102}, pad_token="[PAD]", eos_token="[SEP]", model_max_length=77
    )


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Of Qwen 2.5 and 3, with and without vision: https://huggingface.co/Qwen/Qwen3-4B."""
    return _word_tokenizer(
        {
            "<|endoftext|>": 151643,
            "<|im_start|>": 151644,
            "<|im_end|>": 151645,
            "<|vision_start|>": 151652,
            "<|vision_end|>": 151653,
            "<|image_pad|>": 151655,
        },
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        model_max_length=131072,
    )


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """https://huggingface.co/mistralai/Mistral-Small-3.1-24B-Instruct-2503."""
    return _word_tokenizer({"<s>": 1, "</s>": 2, "<pad>": 11}, pad_token="<pad>", eos_token="</s>")


def llama3_tokenizer(*, pad_token: str, pad_token_id: int) -> PreTrainedTokenizerFast:
    """https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct; it has no token to pad with, so models add one."""
    return _word_tokenizer(
        {"<|begin_of_text|>": 128000, "<|end_of_text|>": 128001, pad_token: pad_token_id},
        pad_token=pad_token,
        eos_token="<|end_of_text|>",
        model_max_length=131072,
    )


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    """Of Gemma 3 and 4: https://huggingface.co/google/gemma-3-12b-it."""
    return _word_tokenizer(
        {"<pad>": 0, "<eos>": 1, "<bos>": 2}, pad_token="<pad>", eos_token="<eos>", model_max_length=1024
    )


def _word_tokenizer(special: dict[str, int], **settings: Any) -> PreTrainedTokenizerFast:
    """All words are one and the same token."""
    tokenizer = Tokenizer(WordLevel({WORD: 1000} | special, unk_token=WORD))
    tokenizer.pre_tokenizer = Split(Regex(WORDS), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=WORD,
        additional_special_tokens=list(special),
        chat_template=CHAT,
        **settings,
    )


class QwenProcessor:
    """Text and images for Qwen's models with vision: what their pipelines use of `Qwen2VLProcessor`.

    Not that class itself: with its processor for videos it needs torchvision.
    """

    IMAGE = "<|image_pad|>"

    def __init__(self, *, patch_size: int, max_pixels: int) -> None:
        self.tokenizer = qwen_tokenizer()
        self.image_processor = Qwen2VLImageProcessorPil(
            patch_size=patch_size, size={"shortest_edge": 56 * 56, "longest_edge": max_pixels}
        )

    def __call__(self, *, text: list[str], images: list[Image.Image] | None = None, **settings: Any) -> BatchFeature:
        """Token ids; of images their patches, and as many tokens as these take."""
        if images is None:
            return BatchFeature(dict(self.tokenizer(text, **settings)))
        seen = self.image_processor(images=images, return_tensors="pt")
        num_tokens = iter(torch.prod(seen.image_grid_thw, dim=1) // self.image_processor.merge_size**2)
        written = [self._with_room(each, num_tokens) for each in text]
        return BatchFeature(dict(self.tokenizer(written, **settings)) | dict(seen))

    def apply_chat_template(self, messages: list[dict[str, Any]], **settings: Any) -> Any:
        """Of one conversation, as a batch of one."""
        return self.tokenizer.apply_chat_template([messages], **settings)

    def create_mm_token_type_ids(self, input_ids: list[list[int]]) -> list[list[int]]:
        """1 for an image's token, 0 for text."""
        image = self.tokenizer.convert_tokens_to_ids(self.IMAGE)
        return [[int(token == image) for token in tokens] for tokens in input_ids]

    def _with_room(self, text: str, num_tokens: Any) -> str:
        before, *after = text.split(self.IMAGE)
        return before + "".join(self.IMAGE * int(next(num_tokens)) + rest for rest in after)
