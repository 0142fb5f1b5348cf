"""Tokenizers made in code: bytes or letters without merges, so that no hub is asked for files."""

import string
import tempfile
from pathlib import Path
from typing import Any

import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
SPACE = "\u2581"
"""What stands for a space in a sentencepiece vocabulary."""
TEXT_TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}{% endfor %}"
)
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_SPECIALS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]
QWEN_FIRST_SPECIAL = 151643
"""The number of `<|endoftext|>` in the published vocabulary."""
PLAIN_SPECIALS = ("<unk>", "<s>", "</s>", "<pad>")


def numbered(tokens: list[str], first: int = 0) -> dict[str, int]:
    return {token: first + number for number, token in enumerate(tokens)}


def qwen(first_special: int = QWEN_FIRST_SPECIAL) -> hf.Qwen2Tokenizer:
    """Qwen 2's: bytes, and the special tokens from `first_special` on."""
    vocab = numbered(BYTES) | numbered(QWEN_SPECIALS, first_special)
    tokenizer = hf.Qwen2Tokenizer(vocab=vocab, merges=[], chat_template=QWEN_TEMPLATE, model_max_length=32768)
    tokenizer.add_special_tokens({"additional_special_tokens": QWEN_SPECIALS[1:]})
    tokenizer.image_token, tokenizer.video_token = "<|image_pad|>", "<|video_pad|>"
    return tokenizer


def plain(
    specials: tuple[str, ...] = PLAIN_SPECIALS, template: str | None = None, **options: Any
) -> hf.PreTrainedTokenizerFast:
    """Bytes, of no particular family."""
    raw = Tokenizer(models.BPE(vocab=numbered([*specials, *BYTES]), merges=[], unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=template,
        model_max_length=512,
        additional_special_tokens=[token for token in specials if token not in PLAIN_SPECIALS],
        **options,
    )


def gemma(letters: str = string.ascii_letters + string.digits + ".,!?'-:;\"()/_") -> hf.GemmaTokenizer:
    """Gemma's five special tokens, a space, and letters."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", SPACE, *letters]
    return hf.GemmaTokenizer(
        vocab=numbered(tokens), merges=[], model_max_length=512, padding_side="left", chat_template=TEXT_TEMPLATE
    )


def bert() -> hf.BertTokenizer:
    """Single letters, as the first of a word and inside of one."""
    singles = string.ascii_lowercase + string.digits + ".,!?'-"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *singles, *("##" + x for x in singles)]
    return hf.BertTokenizer(vocab=numbered(tokens), model_max_length=512)


def xlm_roberta() -> hf.XLMRobertaTokenizer:
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (SPACE, -2.0)]
    vocab += [*((letter, -3.0) for letter in string.ascii_letters), ("<mask>", 0.0)]
    return hf.XLMRobertaTokenizer(vocab=vocab, model_max_length=512)


def roberta(model_max_length: int = 77) -> hf.RobertaTokenizer:
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *BYTES]
    return hf.RobertaTokenizer(vocab=numbered(tokens), merges=[], model_max_length=model_max_length)


def chatglm() -> Any:
    """Kolors' tokenizer reads a sentencepiece model from a file: one is trained on a line of text."""
    import sentencepiece  # only this one needs it
    from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

    words = [
        "a",
        "painting",
        "of",
        "a",
        "squirrel",
        "eating",
        "a",
        "burger",
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "lazy",
        "dogs",
    ]
    folder = Path(tempfile.mkdtemp())
    (folder / "text.txt").write_text("\n".join(words * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=60,
        model_type="bpe",
        pad_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return ChatGLMTokenizer(str(folder / "tokenizer.model"))
