"""Well-known pipelines at real size, built from their published configurations and without weights.

One module per family of models, `parts.py` for what families share. What a call there leaves out has the published
value as its class default; where a scheduler's settings could not be read, the comment says so: they move the values of
the timesteps, not the number of steps.
"""

from collections.abc import Callable
from importlib import import_module

from diffusers import DiffusionPipeline, ModularPipeline

from vramtune.catalog.empty import empty

__all__ = ["BUILDERS", "empty"]


def _later(family: str, name: str) -> Callable[[], DiffusionPipeline | ModularPipeline]:
    """The function of that name; its family's module, and so diffusers' classes, are imported when it is called."""

    def build() -> DiffusionPipeline | ModularPipeline:
        return getattr(import_module(f"{__name__}.{family}"), name)()

    return build


BUILDERS = {
    "sd15": _later("stable_diffusion", "sd15"),
    "sdxl": _later("stable_diffusion", "sdxl"),
    "sd3-medium": _later("stable_diffusion", "sd3_medium"),
    "sd3.5-medium": _later("stable_diffusion", "sd35_medium"),
    "sd3.5-large": _later("stable_diffusion", "sd35_large"),
    "flux.1-dev": _later("flux", "flux1_dev"),
    "flux.1-schnell": _later("flux", "flux1_schnell"),
    "flux.1-kontext-dev": _later("flux", "flux1_kontext_dev"),
    "flux.2-dev": _later("flux", "flux2_dev"),
    "flux.2-klein-4b": _later("flux", "flux2_klein_4b"),
    "flux.2-klein-9b": _later("flux", "flux2_klein_9b"),
    "flux.3-klein": _later("flux", "flux3_klein"),
    "chroma1-hd": _later("flux", "chroma1_hd"),
    "z-image-turbo": _later("z_image", "z_image_turbo"),
    "qwen-image": _later("qwen", "qwen_image"),
    "qwen-image-edit-2511": _later("qwen", "qwen_image_edit_2511"),
    "qwen-image-2.1": _later("qwen", "qwen_image_21"),
    "krea-2": _later("krea", "krea2_turbo"),
    "ideogram-4": _later("ideogram", "ideogram4"),
    "hunyuan-dit": _later("hunyuan", "hunyuan_dit"),
    "hidream-i1-full": _later("hidream", "hidream_i1_full"),
    "pixart-sigma": _later("pixart", "pixart_sigma"),
    "wan2.1-14b": _later("wan", "wan21_14b"),
    "wan2.1-1.3b": _later("wan", "wan21_1b"),
    "wan2.2-t2v-a14b": _later("wan", "wan22_t2v_a14b"),
    "wan2.2-i2v-a14b": _later("wan", "wan22_i2v_a14b"),
    "wan2.2-ti2v-5b": _later("wan", "wan22_ti2v_5b"),
    "hunyuanvideo": _later("hunyuan", "hunyuan_video"),
    "hunyuanvideo-1.5": _later("hunyuan", "hunyuan_video_15"),
    "ltx-video": _later("ltx", "ltx_video"),
    "ltx-13b": _later("ltx", "ltx_13b"),
    "ltx-2.3": _later("ltx", "ltx_23"),
    "ltx-2.5": _later("ltx", "ltx_25"),
    "cogvideox-2b": _later("cogvideox", "cogvideox_2b"),
    "cogvideox-5b": _later("cogvideox", "cogvideox_5b"),
    "latte": _later("latte", "latte1"),
    "minimax-h3": _later("minimax", "minimax_h3"),
}
