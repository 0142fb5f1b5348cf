"""The pipelines at real size against what is published about their sizes."""

from typing import NamedTuple

import pytest

from tests.catalog.built import modules, stored
from vramtune.catalog.pipelines import BUILDERS
from vramtune.contract import Pipeline


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
    # stabilityai/stable-diffusion-3-medium: sd3_medium.safetensors, transformer and vae in one file
    Published("sd3-medium", ("transformer", "vae"), 4_337_667_306, 2),
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
    # THUDM/CogVideoX-5b
    Published("cogvideox-5b", ("vae",), 431_221_142, 2),
    # copies on the Hub, by their git pointers: z_image_bf16.safetensors in Gazai-ai/Gen-Image-Model-Collection (the base
    # model, of Turbo's size), flux2-vae.safetensors in Seryoger/Flux_2_dev_fp8, LTX-Video-VAE-BF16.safetensors in
    # city96/LTX-Video-gguf, LTX23_video_vae_bf16.safetensors in Aloukik21/ltx23
    Published("z-image-turbo", ("transformer",), 12_309_866_400, 2),
    Published("flux.2-dev", ("vae",), 336_213_556, 4),
    Published("ltx-video", ("vae",), 838_411_946, 2),
    Published("ltx-2.3", ("vae",), 1_452_258_578, 2),
]


class Shown(NamedTuple):
    """The size of a component's weight files as the Hub shows it, to three digits, and bytes per number in them."""

    model: str
    component: str
    size: str
    itemsize: int


SHOWN = [
    # THUDM/CogVideoX-2b
    Shown("cogvideox-2b", "transformer", "3.39 GB", 2),
    Shown("cogvideox-2b", "text_encoder", "9.52 GB", 2),  # 4.99 and 4.53
    Shown("cogvideox-2b", "vae", "431 MB", 2),
    # maxin-cn/Latte-1
    Shown("latte", "transformer", "4.23 GB", 4),
    Shown("latte", "vae", "335 MB", 4),
    # Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers; the transformer of 1.1, which takes the image's size too, has 6.07 GB
    Shown("hunyuan-dit", "transformer", "6.00 GB", 4),
    Shown("hunyuan-dit", "text_encoder", "1.41 GB", 4),
    Shown("hunyuan-dit", "text_encoder_2", "6.68 GB", 4),  # 4.99 and 1.69
    Shown("hunyuan-dit", "vae", "335 MB", 4),
    # Comfy-Org/MiniMax-H3: minimax_h3_video_vae_fp16.safetensors, minimax_h3_audio_vae_fp32.safetensors
    Shown("minimax-h3", "vae", "5.21 GB", 2),
    Shown("minimax-h3", "audio_vae", "605 MB", 4),
    # diffusers' documentation of MiniMax-H3, which says GB
    Shown("minimax-h3", "transformer", "61.7 GiB", 2),
    Shown("minimax-h3", "text_encoder", "62.1 GiB", 2),
]
UNITS = {"MB": 1e6, "GB": 1e9, "GiB": 2**30}


class Billions(NamedTuple):
    """Counts as published, to their last digit: denoiser, text encoders, VAE."""

    denoiser: str
    text: str
    vae: str


# Counted by others on the published configurations, tied weights once; where ours differ, the comment says why
BILLIONS = {
    "z-image-turbo": Billions("6.155", "4.02", "0.084"),
    "flux.2-klein-4b": Billions("3.876", "4.02", "0.084"),
    "qwen-image": Billions("20.430", "8.29", "0.127"),
    "wan2.2-t2v-a14b": Billions("28.577", "5.68", "0.127"),
    "wan2.2-i2v-a14b": Billions("28.578", "5.68", "0.127"),
    "wan2.2-ti2v-5b": Billions("5.000", "5.68", "0.705"),
    # VAE: others took the class defaults (1.22), which are LTX-2.0's; the published file (above) has 0.726
    "ltx-2.3": Billions("18.989", "12.19", "0.726"),
    "flux.2-dev": Billions("32.223", "24.01", "0.084"),
    "flux.2-klein-9b": Billions("9.079", "8.19", "0.084"),
    "krea-2": Billions("12.820", "4.44", "0.127"),
    "qwen-image-edit-2511": Billions("20.430", "8.29", "0.127"),
    "hunyuanvideo-1.5": Billions("8.327", "7.29", "1.261"),
    "flux.1-schnell": Billions("11.891", "4.89", "0.084"),
    "flux.1-kontext-dev": Billions("11.901", "4.89", "0.084"),
    "qwen-image-2.1": Billions("7.115", "8.77", "0.338"),
    # text: others took half the bytes of the encoder's file (26.26 GB, "about 13.1"); Gemma 4 12B has 11.96, and with
    # the projections, which diffusers counts among the connectors, it fills 26.23 GB
    "ltx-2.5": Billions("18.988", "11.96", "0.726"),
    # text: without its head (with it 8.77), which in diffusers is an optional component of its own
    "ideogram-4": Billions("18.559", "8.14", "0.084"),
    "chroma1-hd": Billions("8.900", "4.76", "0.084"),
    "wan2.1-1.3b": Billions("1.419", "5.68", "0.127"),
    "ltx-video": Billions("1.923", "4.76", "0.419"),
    "hidream-i1-full": Billions("17.106", "13.61", "0.084"),
    # text: 128320 tokens, 64 more than Llama 3's (7.50 + 0.12)
    "hunyuanvideo": Billions("12.821", "7.63", "0.246"),
    "pixart-sigma": Billions("0.611", "4.76", "0.084"),
    # denoiser: "trainable parameters" in finetrainers' documentation of CogVideoX
    "cogvideox-5b": Billions("5.570283072", "4.76", "0.216"),
    # read by others from the headers of the weight files of the distilled 13B, which is of the same size
    "ltx-13b": Billions("13.042569344", "4.762310656", "1.246913778"),
    # denoiser: others counted 5.538 without the second timestep that the distilled model is given (256 x 3072 and
    # 3072 x 3072 numbers more); the model card says 5.6
    "flux.3-klein": Billions("5.549", "4.44", "0.084"),
}


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda p: f"{p.model}-{'-'.join(p.components)}")
def test_the_weights_fill_the_published_files(pipelines: dict[str, Pipeline], published: Published) -> None:
    tensors = [tensor for name in published.components for tensor in stored(getattr(pipelines[published.model], name))]
    num_parameters = sum(tensor.numel() for tensor in tensors)
    header_bytes = published.file_bytes - published.itemsize * num_parameters
    # a header spends about 120 bytes on a tensor; a wrong layer is off by megabytes
    assert 0 <= header_bytes <= 300 * len(tensors)


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: f"{shown.model}-{shown.component}")
def test_the_weights_fill_files_of_the_size_that_is_shown(pipelines: dict[str, Pipeline], shown: Shown) -> None:
    digits, unit = shown.size.split(" ")
    numbers = sum(tensor.numel() for tensor in stored(getattr(pipelines[shown.model], shown.component)))
    decimals = len(digits.partition(".")[2])
    assert f"{numbers * shown.itemsize / UNITS[unit]:.{decimals}f}" == digits


@pytest.mark.parametrize("name", BILLIONS)
def test_the_counts_are_the_published_ones(pipelines: dict[str, Pipeline], name: str) -> None:
    numbers = {"denoiser": 0, "text": 0, "vae": 0}
    for component, module in modules(pipelines[name]).items():
        if kind := kind_of(component):
            numbers[kind] += sum(tensor.numel() for tensor in stored(module))
    for kind, billions in BILLIONS[name]._asdict().items():
        digits = len(billions.partition(".")[2])
        assert f"{numbers[kind] / 1e9:.{digits}f}" == billions, kind


def kind_of(component: str) -> str | None:
    """Of a component; None for connectors, audio and the like."""
    if "transformer" in component or component == "unet":
        return "denoiser"
    if component.startswith("text_encoder"):
        return "text"
    return "vae" if component == "vae" else None


def test_every_model_has_a_published_size() -> None:
    assert BILLIONS.keys() | {each.model for each in (*PUBLISHED, *SHOWN)} == set(BUILDERS)
