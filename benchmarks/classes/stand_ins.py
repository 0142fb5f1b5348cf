"""What diffusers' tests ask a hub for, made in code: `without_hub()` puts it in the hub's place."""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers as hf
from diffusers import ModelMixin, UNet2DModel
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.image_processing_base import ImageProcessingMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from benchmarks.classes import encoders, tokenizers
from tests.tiny_pipelines import clip_tokenizer, t5_tokenizer

LOADERS = (
    *(hf.PreTrainedModel, PreTrainedTokenizerBase, hf.ProcessorMixin, ImageProcessingMixin),
    *(FeatureExtractionMixin, hf.AutoTokenizer, hf.AutoConfig, hf.AutoProcessor, ModelMixin),
)
"""All that defines a `from_pretrained` of its own."""
SMALL_AREA = 112 * 112
"""Pixels to which Qwen's edit pipelines bring an image here, instead of a megapixel."""


@dataclass(frozen=True)
class Wanted:
    """What a test asked for: `kind.from_pretrained(repo, **options)`."""

    kind: type
    repo: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def first_special(self) -> int:
        """Of a Qwen vocabulary: one repository has a small one."""
        is_small = "huangfeice" in self.repo
        return encoders.TINY_QWEN_FIRST_SPECIAL if is_small else tokenizers.QWEN_FIRST_SPECIAL


def of_length(tokenizer: Any, wanted: Wanted) -> Any:
    """The tokenizer, with the longest prompt that was asked for."""
    tokenizer.model_max_length = wanted.options.get("model_max_length", tokenizer.model_max_length)
    return tokenizer


def consistency_unet(wanted: Wanted) -> UNet2DModel:
    is_conditional = "class_cond" in wanted.options.get("subfolder", "")
    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(32, 64),
        num_class_embeds=10 if is_conditional else None,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=8,
        norm_eps=1e-6,
        norm_num_groups=32,
        resnet_time_scale_shift="scale_shift",
    )


STAND_INS: list[tuple[str, str, Callable[[Wanted], Any]]] = [
    ("qwen[23]vl|qwen3-emb", "Processor", lambda w: encoders.qwen_processor(w.kind.__name__, w.first_special)),
    ("qwen[23]vl|qwen3-emb", "Tokenizer", lambda w: tokenizers.qwen(w.first_special)),
    ("qwen[23]vl|qwen3-emb", "Qwen3", lambda w: encoders.qwen3_vl()),
    ("qwen[23]vl|qwen3-emb", "", lambda w: encoders.qwen2_vl()),
    ("cosmos3", "", lambda w: tokenizers.qwen()),
    ("chatglm", "Tokenizer", lambda w: tokenizers.chatglm()),
    ("chatglm", "", lambda w: encoders.chatglm()),
    ("dummy-gemma", "Tokenizer", lambda w: tokenizers.gemma("ae")),
    ("gemma", "Tokenizer", lambda w: tokenizers.gemma()),
    ("gemma", "", lambda w: encoders.gemma3()),
    ("t5", "Tokenizer", lambda w: of_length(t5_tokenizer(), w)),
    ("umt5", "", lambda w: encoders.umt5()),
    ("t5", "Config", lambda w: encoders.t5_config()),
    ("t5", "", lambda w: w.kind(encoders.t5_config())),
    ("mclip", "", lambda w: tokenizers.xlm_roberta()),
    ("roberta", "", lambda w: of_length(tokenizers.roberta(), w)),
    ("bert", "Tokenizer", lambda w: tokenizers.bert()),
    ("bert", "", lambda w: encoders.bert()),
    ("llama", "^(?!.*Tokenizer)", lambda w: encoders.llama()),
    ("llama|hunyaunvideo", "", lambda w: tokenizers.plain()),
    ("glm-image", "", lambda w: encoders.glm_image_processor()),
    ("glm-4", "", lambda w: tokenizers.plain(padding_side="left")),
    ("mistral", "", lambda w: encoders.pixtral_processor()),
    ("clip", "", lambda w: of_length(clip_tokenizer(), w)),
    ("siglip", "Processor", lambda w: w.kind(size=w.options.get("size"))),
    ("siglip", "", lambda w: encoders.siglip()),
    ("clap", "", lambda w: hf.ClapFeatureExtractor(hop_length=w.options.get("hop_length", 480))),
    ("dpt", "", lambda w: hf.DPTImageProcessor(size={"height": 32, "width": 32})),
    ("consistency-models-test", "", consistency_unet),
]
"""Patterns of the repository and of the class that is loaded, and what is made; the first line that fits counts."""


def stand_in(wanted: Wanted) -> Any:
    """What the hub would have given; `LookupError` where nothing stands in for it."""
    for repo, kind, make in STAND_INS:
        if re.search(repo, wanted.repo, re.IGNORECASE) and re.search(kind, wanted.kind.__name__):
            found = make(wanted)
            return found.eval() if hasattr(found, "eval") else found
    raise LookupError(f"nothing stands in for {wanted.kind.__name__}.from_pretrained({wanted.repo!r})")


def without_hub() -> None:
    """From now on, `from_pretrained` with anything but a folder makes a stand-in."""
    for loader in LOADERS:
        loader.from_pretrained = classmethod(_from_folder(vars(loader)["from_pretrained"].__func__))


def _from_folder(original: Callable[..., Any]) -> Callable[..., Any]:
    def from_pretrained(cls: type, repo: Any, *args: Any, **options: Any) -> Any:
        if Path(str(repo)).is_dir():
            return original(cls, repo, *args, **options)
        return stand_in(Wanted(cls, str(repo), options))

    return from_pretrained


def with_small_images(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Keep Qwen's edit pipelines from enlarging every image to a megapixel, which takes minutes here."""
    for name in ("edit", "edit_plus", "edit_inpaint"):
        module = importlib.import_module(f"diffusers.pipelines.qwenimage.pipeline_qwenimage_{name}")
        if original := getattr(module, "calculate_dimensions", None):
            smaller = lambda area, ratio, of=original: of(min(area, SMALL_AREA), ratio)  # noqa: E731
            replace(module, "calculate_dimensions", smaller)
