"""The pipelines at real size against what is published about them."""

from typing import NamedTuple

import pytest
import torch
from diffusers import DiffusionPipeline

from vramtune import catalog
from vramtune.catalog.pipelines import BUILDERS

PROMPT = "a red fox in the snow"


class Published(NamedTuple):
    """Bytes of the published weight files of some components of a pipeline, and bytes per number in them."""

    model: str
    components: tuple[str, ...]
    file_bytes: int
    itemsize: int


# File sizes as the Hub shows them under "Files and versions"; `total_size` is that of the index of a file in
# several parts, which counts tensors only.
PUBLISHED = [
    # stable-diffusion-v1-5: *.fp16.safetensors. Also: diffusers documents 859,520,964 parameters of the unet as
    # the example of `ModelMixin.num_parameters`
    Published("sd15", ("unet",), 1_719_125_304, 2),
    Published("sd15", ("vae",), 167_335_342, 2),
    Published("sd15", ("text_encoder",), 246_144_864, 2),
    # stabilityai/stable-diffusion-xl-base-1.0: *.fp16.safetensors. Also: 2.6 billion and 817 million parameters
    # of unet and text encoders, arXiv:2307.01952, table 1
    Published("sdxl", ("unet",), 5_135_149_760, 2),
    Published("sdxl", ("vae",), 167_335_342, 2),
    Published("sdxl", ("text_encoder",), 246_144_152, 2),
    Published("sdxl", ("text_encoder_2",), 1_389_382_176, 2),
    # stabilityai/stable-diffusion-3.5-medium: sd3.5_medium.safetensors, transformer and vae in one file
    Published("sd3.5-medium", ("transformer", "vae"), 5_107_104_286, 2),
    # stabilityai/stable-diffusion-3.5-large: the parts of each component added up
    Published("sd3.5-large", ("transformer",), 9_985_185_992 + 6_307_519_304, 2),
    Published("sd3.5-large", ("vae",), 167_666_902, 2),
    Published("sd3.5-large", ("text_encoder",), 247_323_896, 2),
    Published("sd3.5-large", ("text_encoder_2",), 1_389_382_176, 2),
    Published("sd3.5-large", ("text_encoder_3",), 4_994_582_104 + 4_530_066_248, 2),
    # black-forest-labs/FLUX.1-dev. Also: total_size 23,802,816,640 of the transformer's index
    Published("flux.1-dev", ("transformer",), 9_983_040_304 + 9_949_328_904 + 3_870_584_832, 2),
    Published("flux.1-dev", ("vae",), 167_666_902, 2),
    Published("flux.1-dev", ("text_encoder",), 246_144_352, 2),
    Published("flux.1-dev", ("text_encoder_2",), 4_994_582_224 + 4_530_066_360, 2),
    # Wan-AI/Wan2.1-T2V-14B-Diffusers: total_size of the indices; the transformer is stored in float32
    Published("wan2.1-14b", ("transformer",), 57_153_966_336, 4),
    Published("wan2.1-14b", ("text_encoder",), 11_361_820_672, 2),
    Published("wan2.1-14b", ("vae",), 507_591_892, 4),
]


@pytest.fixture(scope="module")
def pipelines() -> dict[str, DiffusionPipeline]:
    return {name: build() for name, build in BUILDERS.items()}


def stored(module: torch.nn.Module) -> list[torch.Tensor]:
    """What its weight files hold: parameters and saved buffers, tied ones once."""
    return list({id(tensor): tensor for tensor in module.state_dict(keep_vars=True).values()}.values())


def modules(pipe: DiffusionPipeline) -> dict[str, torch.nn.Module]:
    return {name: c for name, c in pipe.components.items() if isinstance(c, torch.nn.Module)}


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda p: f"{p.model}-{'-'.join(p.components)}")
def test_a_catalog_pipeline_s_weights_fill_its_published_files(
    pipelines: dict[str, DiffusionPipeline], published: Published
) -> None:
    tensors = [
        tensor
        for name in published.components
        for tensor in stored(getattr(pipelines[published.model], name))
    ]
    num_parameters = sum(tensor.numel() for tensor in tensors)
    header_bytes = published.file_bytes - published.itemsize * num_parameters
    # a header spends about 120 bytes on a tensor; a wrong layer is off by megabytes
    assert 0 <= header_bytes <= 200 * len(tensors)


@pytest.mark.parametrize("entry", catalog.models(), ids=lambda entry: entry.name)
def test_an_entry_s_parameters_and_class_are_those_of_its_pipeline(
    pipelines: dict[str, DiffusionPipeline], entry: catalog.Entry
) -> None:
    pipe = pipelines[entry.name]
    tensors = [tensor for module in modules(pipe).values() for tensor in stored(module)]
    assert sum(tensor.numel() for tensor in tensors) == entry.num_parameters
    assert type(pipe).__name__ == entry.pipeline_class


@pytest.mark.parametrize("name", BUILDERS)
def test_a_catalog_pipeline_is_on_the_meta_device_and_in_eval_mode(
    pipelines: dict[str, DiffusionPipeline], name: str
) -> None:
    for module in modules(pipelines[name]).values():
        assert all(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()])
        assert not module.training


@pytest.mark.parametrize("name", BUILDERS)
def test_a_catalog_pipeline_has_the_dtypes_of_its_model_card(
    pipelines: dict[str, DiffusionPipeline], name: str
) -> None:
    half = torch.float16 if name in ("sd15", "sdxl") else torch.bfloat16
    in_float32 = {("wan2.1-14b", "vae")}
    for component, module in modules(pipelines[name]).items():
        dtype = torch.float32 if (name, component) in in_float32 else half
        assert module.dtype == dtype
        others = {path for path, tensor in module.state_dict().items() if tensor.dtype != dtype}
        # diffusers keeps these of Wan in float32, whatever is asked for
        kept = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")
        assert bool(others) == (component == "transformer" and name == "wan2.1-14b")
        assert all(any(part in path.split(".") for part in kept) for path in others)


def test_the_embeddings_of_t5_are_tied(pipelines: dict[str, DiffusionPipeline]) -> None:
    for name, component in (("flux.1-dev", "text_encoder_2"), ("wan2.1-14b", "text_encoder")):
        encoder = getattr(pipelines[name], component)
        assert encoder.shared.weight is encoder.encoder.embed_tokens.weight


@pytest.mark.parametrize("name", BUILDERS)
def test_tokenizers_pad_to_the_length_that_their_encoders_accept(
    pipelines: dict[str, DiffusionPipeline], name: str
) -> None:
    pipe = pipelines[name]
    for component, tokenizer in pipe.components.items():
        if component.startswith("tokenizer"):
            config = getattr(pipe, component.replace("tokenizer", "text_encoder")).config
            ids = tokenizer(PROMPT, padding="max_length", truncation=True).input_ids
            assert len(ids) == getattr(config, "max_position_embeddings", 512)
            assert max(ids) < config.vocab_size
            assert tokenizer.eos_token_id == config.eos_token_id
            assert ids.count(tokenizer.eos_token_id) >= 1


def test_catalog_pipelines_have_the_settings_that_their_calls_depend_on(
    pipelines: dict[str, DiffusionPipeline],
) -> None:
    assert pipelines["sdxl"].vae.config.force_upcast
    assert pipelines["sdxl"].vae.config.scaling_factor == 0.13025
    assert pipelines["sd3.5-large"].transformer.config.num_layers == 38
    assert pipelines["sd3.5-medium"].transformer.config.dual_attention_layers == tuple(range(13))
    assert pipelines["flux.1-dev"].transformer.config.guidance_embeds
    assert pipelines["flux.1-dev"].scheduler.config.use_dynamic_shifting
    assert pipelines["wan2.1-14b"].scheduler.config.flow_shift == 3.0
    assert pipelines["sd15"].unet.config.sample_size * pipelines["sd15"].vae_scale_factor == 512
    assert pipelines["sdxl"].default_sample_size * pipelines["sdxl"].vae_scale_factor == 1024
