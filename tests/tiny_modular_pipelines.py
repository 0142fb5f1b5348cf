"""Tiny modular pipelines: the components of `tiny_pipelines` under diffusers' modular blocks.

`build(name)` makes one of `CLASSES`, the same each time; `run(pipe, name)` calls it for two steps.
"""

from typing import Any

import torch
from diffusers import ComponentsManager, FluxModularPipeline, ModularPipeline, StableDiffusionXLModularPipeline

from tests import tiny_pipelines

CLASSES = {"flux": FluxModularPipeline, "sdxl": StableDiffusionXLModularPipeline}
CALL: dict[str, dict[str, Any]] = {name: {"num_inference_steps": 2, **tiny_pipelines.CALL[name]} for name in CLASSES}


def build(name: str, manager: ComponentsManager | None = None) -> ModularPipeline:
    """The named pipeline, registered with a manager if there is one; its random weights are the same each time."""
    return with_components_of(tiny_pipelines.build(name), CLASSES[name](components_manager=manager))


def with_components_of(standard: Any, pipe: ModularPipeline) -> ModularPipeline:
    """The modular pipeline with those components of a standard one that it asks for, and without progress bars."""
    found = {name: standard.components.get(name) for name in pipe.pretrained_component_names}
    pipe.update_components(**{name: component for name, component in found.items() if component is not None})
    silence(pipe._blocks)
    return pipe


def run(pipe: ModularPipeline, name: str, **call_kwargs: Any) -> torch.Tensor:
    """One call with a fixed seed, as a tensor."""
    settings = {"prompt": "a photo of a cat", "output_type": "pt", "output": "images", **CALL[name], **call_kwargs}
    return pipe(generator=torch.Generator("cpu").manual_seed(0), **settings)


def silence(block: Any) -> None:
    """Switch the progress bars of a block and those in it off; the pipeline's own method reaches one level only."""
    if hasattr(block, "set_progress_bar_config"):
        block.set_progress_bar_config(disable=True)
    for inner in block.sub_blocks.values():
        silence(inner)
