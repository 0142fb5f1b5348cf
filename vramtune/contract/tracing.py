"""What the profiler has to know of a pipeline's call to run it without values."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers import ModularPipeline
from diffusers.utils import import_utils
from torch import nn
from transformers.utils import import_utils as transformers_utils

from vramtune.contract import CALL, Pipeline, modules_of


def pipelines_in(pipe: Pipeline) -> Iterator[Pipeline]:
    """The pipeline and those in it: combined pipelines (Kandinsky, Stable Cascade) call others."""
    yield pipe
    for value in vars(pipe).values():
        if isinstance(value, Pipeline):
            yield from pipelines_in(value)


def call_parameters(pipe: Pipeline, method: str) -> dict[str, inspect.Parameter]:
    """What a method of the pipeline takes, by name.

    A modular pipeline's call takes what its blocks do: each input, and all inputs of a kind as one dictionary (`_blocks`
    in `diffusers/modular_pipelines/modular_pipeline.py`).
    """
    parameters = dict(inspect.signature(getattr(type(pipe), method)).parameters)
    parameters.pop(next(iter(parameters)))  # self
    if method == CALL and isinstance(pipe, ModularPipeline):
        inputs = pipe._blocks.inputs
        names = dict.fromkeys(name for each in inputs for name in (each.name, each.kwargs_type) if name)
        del parameters["kwargs"]
        parameters |= {name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names}
    return parameters


def shared_by_copies(pipe: Pipeline) -> Iterator[object]:
    """What would take long to copy: the compiled half of fast tokenizers, and what knows of other pipelines' weights.

    The first is never changed by a call, the others have no part in it: hooks, and a modular pipeline's manager.
    `_tokenizer` in `transformers/tokenization_utils_tokenizers.py`; processors have a tokenizer in them.
    `_components_manager` in `diffusers/modular_pipelines/modular_pipeline.py`.
    """
    for component in pipe.components.values():
        for owner in (component, getattr(component, "tokenizer", None)):
            if (compiled := getattr(owner, "_tokenizer", None)) is not None:
                yield compiled
    for component in modules_of(pipe).values():
        yield from (module._hf_hook for module in component.modules() if hasattr(module, "_hf_hook"))
    if (manager := getattr(pipe, "_components_manager", None)) is not None:
        yield manager


def missing_package(error: Exception) -> str | None:
    """The optional package for whose want a pipeline failed: diffusers leaves its name undefined where it is not installed.

    `is_<package>_available` in `diffusers/utils/import_utils.py`; `diffusers/pipelines/wan/pipeline_wan_i2v.py` needs ftfy.
    """
    if not isinstance(error, NameError):
        return None
    is_available = getattr(import_utils, f"is_{error.name}_available", None)
    return error.name if is_available is not None and not is_available() else None


def quieten(pipe: Pipeline) -> None:
    """Switch off the progress bar and the stock hooks of a pipeline's copy that is about to be traced.

    Written past `DiffusionPipeline.__setattr__`, which would register the values in the pipeline's config. Without
    entries in `_all_hooks`, `maybe_free_model_hooks` at the end of the call moves nothing. A modular pipeline has its
    bars in its blocks (`_blocks`, `sub_blocks`), and tells its manager of components that are exchanged
    (`_components_manager`, both in `diffusers/modular_pipelines/modular_pipeline.py`).
    """
    own: dict[str, Any] = vars(pipe)
    if isinstance(pipe, ModularPipeline):
        own["_components_manager"] = None
        for block in _blocks_in(pipe._blocks):
            vars(block)["_progress_bar_config"] = {"disable": True}
        return
    own["_progress_bar_config"] = {"disable": True}
    own["_all_hooks"] = []
    own.pop("maybe_free_model_hooks", None)


def _blocks_in(block: Any) -> Iterator[Any]:
    yield block
    for inner in block.sub_blocks.values():
        yield from _blocks_in(inner)


def forward_to_follow(component: nn.Module) -> Callable[..., Any] | None:
    """A `forward` with the same work, where the component's own looks at values that only its weights decide.

    Stable Diffusion's safety checker compares embeddings in NumPy
    (`diffusers/pipelines/stable_diffusion/safety_checker.py`); here it finds nothing, as it mostly does.
    """
    return partial(_checked, component) if type(component).__name__ == "StableDiffusionSafetyChecker" else None


@contextmanager
def masks_by_value(is_known: Callable[[torch.Tensor], bool]) -> Iterator[None]:
    """While entered, transformers looks at the values of masks that are known: of one that hides nothing it makes none.

    It does not where it believes to be traced (`is_fake_tensor` in `transformers/utils/import_utils.py`).
    """
    before = transformers_utils.is_fake_tensor
    transformers_utils.is_fake_tensor = lambda x: isinstance(x, torch.Tensor) and before(x) and not is_known(x)
    try:
        yield
    finally:
        transformers_utils.is_fake_tensor = before


def _checked(checker: Any, clip_input: torch.Tensor, images: Any) -> tuple[Any, list[bool]]:
    embeddings = nn.functional.normalize(checker.visual_projection(checker.vision_model(clip_input)[1]))
    for concepts, thresholds in (
        (checker.special_care_embeds, checker.special_care_embeds_weights),
        (checker.concept_embeds, checker.concept_embeds_weights),
    ):
        torch.mm(embeddings, nn.functional.normalize(concepts).t()).float() - thresholds
    return images, [False] * len(images)
