"""The pipelines that are known by name: facts only, without torch."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A pipeline that is known by name."""

    name: str
    title: str
    pipeline_class: str
    num_parameters: int
    """Numbers in the weight files of all components together; tied weights once."""
    dtype: str
    """The dtype that the model card recommends, with components that differ."""
    source: str
    """Where the configurations are published."""
    aliases: tuple[str, ...] = ()


ENTRIES = (
    Entry(
        name="sd15",
        title="Stable Diffusion 1.5",
        pipeline_class="StableDiffusionPipeline",
        num_parameters=1_066_235_307,
        dtype="float16",
        source="https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5",
        aliases=("sd1.5", "stable-diffusion-1.5", "stable-diffusion-v1-5"),
    ),
    Entry(
        name="sdxl",
        title="Stable Diffusion XL 1.0",
        pipeline_class="StableDiffusionXLPipeline",
        num_parameters=3_468_837_867,
        dtype="float16",
        source="https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0",
        aliases=("sd-xl", "sdxl-base", "sdxl-1.0", "stable-diffusion-xl", "stable-diffusion-xl-base-1.0"),
    ),
    Entry(
        name="sd3.5-medium",
        title="Stable Diffusion 3.5 Medium",
        pipeline_class="StableDiffusion3Pipeline",
        num_parameters=8_134_104_419,
        dtype="bfloat16",
        source="https://huggingface.co/stabilityai/stable-diffusion-3.5-medium",
        aliases=("sd35m", "stable-diffusion-3.5-medium"),
    ),
    Entry(
        name="sd3.5-large",
        title="Stable Diffusion 3.5 Large",
        pipeline_class="StableDiffusion3Pipeline",
        num_parameters=13_810_721_251,
        dtype="bfloat16",
        source="https://huggingface.co/stabilityai/stable-diffusion-3.5-large",
        aliases=("sd35l", "stable-diffusion-3.5-large"),
    ),
    Entry(
        name="flux.1-dev",
        title="FLUX.1 [dev]",
        pipeline_class="FluxPipeline",
        num_parameters=16_870_599_139,
        dtype="bfloat16",
        source="https://huggingface.co/black-forest-labs/FLUX.1-dev",
        aliases=("flux", "flux.1", "flux-dev"),
    ),
    Entry(
        name="wan2.1-14b",
        title="Wan 2.1 text to video 14B",
        pipeline_class="WanPipeline",
        num_parameters=20_096_294_451,
        dtype="bfloat16, vae float32",
        source="https://huggingface.co/Wan-AI/Wan2.1-T2V-14B-Diffusers",
        aliases=("wan", "wan2.1", "wan-14b", "wan2.1-t2v-14b", "wan2.1-t2v-14b-diffusers"),
    ),
)


def find_entry(model: str) -> Entry | None:
    """The entry of that name or alias, whatever the case and punctuation."""
    asked = _bare(model)
    return next((e for e in ENTRIES if asked in map(_bare, (e.name, *e.aliases))), None)


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
