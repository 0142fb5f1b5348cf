"""The pipelines of the catalog: what they are made of, and the tokenizers made in code."""

import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer, T5Tokenizer

from tests.catalog.built import modules, stored
from vramtune import catalog
from vramtune.catalog.pipelines import BUILDERS
from vramtune.catalog.tokenizers import QwenProcessor
from vramtune.contract import CALL, Pipeline
from vramtune.contract.tracing import call_parameters

PROMPT = "a red fox in the snow"


@pytest.mark.parametrize("entry", catalog.models(), ids=lambda entry: entry.name)
def test_the_entry_says_what_is_built(pipelines: dict[str, Pipeline], entry: catalog.Entry) -> None:
    pipe = pipelines[entry.name]
    tensors = [tensor for module in modules(pipe).values() for tensor in stored(module)]
    assert sum(tensor.numel() for tensor in tensors) == entry.num_parameters
    assert type(pipe).__name__ == entry.pipeline_class


@pytest.mark.parametrize("name", BUILDERS)
def test_nothing_is_allocated_and_nothing_trains(pipelines: dict[str, Pipeline], name: str) -> None:
    for module in modules(pipelines[name]).values():
        assert all(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()])
        assert not module.training


KEPT_IN_FLOAT32 = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3", "t_embedder", "cap_embedder")
"""What diffusers and transformers keep so, whatever is asked for."""


@pytest.mark.parametrize("entry", catalog.models(), ids=lambda entry: entry.name)
def test_dtypes_are_those_the_entry_says(pipelines: dict[str, Pipeline], entry: catalog.Entry) -> None:
    """Such as "bfloat16, vae float32"."""
    usual, *others = entry.dtype.split(", ")
    named = dict(other.split(" ") for other in others)
    for component, module in modules(pipelines[entry.name]).items():
        assert str(module.dtype) == f"torch.{named.get(component, usual)}", component


def test_what_a_class_keeps_in_float32_stays_so(pipelines: dict[str, Pipeline]) -> None:
    for name in ("wan2.1-14b", "wan2.2-i2v-a14b"):
        dtypes = {path: tensor.dtype for path, tensor in pipelines[name].transformer.state_dict().items()}
        kept = {path for path, dtype in dtypes.items() if dtype == torch.float32}
        assert kept
        assert all(set(KEPT_IN_FLOAT32) & set(path.split(".")) for path in kept)


def test_t5_s_embeddings_count_once(pipelines: dict[str, Pipeline]) -> None:
    for name, component in (("flux.1-dev", "text_encoder_2"), ("wan2.1-14b", "text_encoder")):
        encoder = getattr(pipelines[name], component)
        assert encoder.shared.weight is encoder.encoder.embed_tokens.weight


@pytest.mark.parametrize("name", BUILDERS)
def test_tokenizers_give_what_the_encoders_take(pipelines: dict[str, Pipeline], name: str) -> None:
    pipe = pipelines[name]
    for component, part in pipe.components.items():
        if component.startswith("tokenizer"):
            tokenizer = getattr(part, "tokenizer", part)  # of a processor
            config = getattr(pipe, component.replace("tokenizer", "text_encoder")).config.get_text_config()
            ids = tokenizer(PROMPT, padding="max_length", truncation=True, max_length=77).input_ids
            assert len(ids) == 77
            assert max(ids) < config.vocab_size
            if isinstance(tokenizer, CLIPTokenizer | T5Tokenizer):
                assert tokenizer.model_max_length == getattr(config, "max_position_embeddings", 512)
                assert tokenizer.eos_token_id == config.eos_token_id
                assert ids.count(tokenizer.eos_token_id) >= 1


def test_word_tokenizers_count_as_diffusers_says(pipelines: dict[str, Pipeline]) -> None:
    """What pipelines cut off in front of the prompt is as long as they say: they counted the real tokens."""
    for name in ("qwen-image", "qwen-image-edit-2511"):
        pipe = pipelines[name]
        before = pipe.prompt_template_encode.partition("{}")[0]
        assert len(pipe.tokenizer(before).input_ids) == pipe.prompt_template_encode_start_idx
    krea = pipelines["krea-2"]
    prefix, suffix = krea.prompt_template_encode_prefix, krea.prompt_template_encode_suffix
    assert len(krea.tokenizer(prefix).input_ids) == krea.prompt_template_encode_start_idx
    assert len(krea.tokenizer(suffix).input_ids) == krea.prompt_template_encode_num_suffix_tokens
    hunyuan = pipelines["hunyuanvideo-1.5"]
    chat = [{"role": "system", "content": hunyuan.system_message}, {"role": "user", "content": ""}]
    text = hunyuan.tokenizer.apply_chat_template(chat, tokenize=False).removesuffix("<|im_end|>\n")
    assert len(hunyuan.tokenizer(text).input_ids) == hunyuan.prompt_template_encode_start_idx


def test_the_processor_makes_room_for_images() -> None:
    processor = QwenProcessor(patch_size=14, max_pixels=14 * 14 * 4 * 16384)
    image = Image.new("RGB", (280, 140))
    inputs = processor(text=["a <|image_pad|> b"], images=[image], padding=True, return_tensors="pt")
    pad = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert inputs["image_grid_thw"].tolist() == [[1, 10, 20]]
    assert inputs["pixel_values"].shape[0] == 200
    assert (inputs["input_ids"] == pad).sum() == 200 / 4  # two by two patches are one token
    assert (processor(text=["a b"], return_tensors="pt")["input_ids"] == pad).sum() == 0
    assert processor.create_mm_token_type_ids([[1000, pad], [1000]]) == [[0, 1], [0]]


def test_the_settings_that_the_calls_depend_on(pipelines: dict[str, Pipeline]) -> None:
    assert pipelines["sdxl"].vae.config.force_upcast
    assert pipelines["sdxl"].vae.config.scaling_factor == 0.13025
    assert pipelines["sd3.5-large"].transformer.config.num_layers == 38
    assert pipelines["sd3.5-medium"].transformer.config.dual_attention_layers == tuple(range(13))
    assert pipelines["flux.1-dev"].transformer.config.guidance_embeds
    assert pipelines["flux.1-dev"].scheduler.config.use_dynamic_shifting
    assert pipelines["wan2.1-14b"].scheduler.config.flow_shift == 3.0
    assert pipelines["sd15"].unet.config.sample_size * pipelines["sd15"].vae_scale_factor == 512
    assert pipelines["sdxl"].default_sample_size * pipelines["sdxl"].vae_scale_factor == 1024
    assert not pipelines["flux.1-schnell"].transformer.config.guidance_embeds
    assert pipelines["flux.2-klein-4b"].config.is_distilled
    assert pipelines["krea-2"].config.is_distilled
    assert pipelines["wan2.2-t2v-a14b"].config.boundary_ratio == 0.875
    assert pipelines["wan2.2-ti2v-5b"].config.expand_timesteps
    assert pipelines["wan2.2-ti2v-5b"].vae_scale_factor_spatial == 16
    assert pipelines["sd3-medium"].transformer.config.qk_norm is None
    assert pipelines["flux.3-klein"].transformer.config.flow_map
    assert not pipelines["hunyuan-dit"].transformer.config.use_style_cond_and_image_meta_size
    assert pipelines["cogvideox-5b"].transformer.config.use_rotary_positional_embeddings
    assert pipelines["ltx-13b"].vae.config.timestep_conditioning
    assert pipelines["ltx-13b"].vae_spatial_compression_ratio == 32
    assert pipelines["hunyuanvideo-1.5"].guider.guidance_scale == 6.0


@pytest.mark.parametrize("entry", catalog.models(), ids=lambda entry: entry.name)
def test_the_call_of_an_entry_is_one_its_pipeline_takes(pipelines: dict[str, Pipeline], entry: catalog.Entry) -> None:
    accepted = call_parameters(pipelines[entry.name], CALL)
    assert entry.call_kwargs.keys() <= accepted.keys()
    assert entry.image_size is None or "image" in accepted
