"""Pipelines to predict for, without their weights: known by name, from a folder, or from the Hub."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vramtune.catalog.entries import ENTRIES, Entry, find_entry
from vramtune.catalog.quantizations import find_quantizations, quantization_names
from vramtune.errors import UnknownNameError, UsageError
from vramtune.extras import expect_pipelines
from vramtune.paths import is_folder, is_there, user_path

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModularPipeline

__all__ = ["Entry", "expect_model", "find", "load", "models", "names", "quantization_names"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PATH_SIGNS = re.compile(r"[/\\~]|^\.")


def names() -> tuple[str, ...]:
    """The names that `load` knows without files or network."""
    return tuple(entry.name for entry in ENTRIES)


def models() -> tuple[Entry, ...]:
    """The facts of the pipelines that have these names."""
    return ENTRIES


def load(model: str, *, quantize: Mapping[str, str] | None = None) -> "DiffusionPipeline | ModularPipeline":
    """A complete pipeline whose parameters are on the meta device: they have shapes and dtypes, but no values.

    `model` is a name of `names()` (case and punctuation do not matter), a folder written by `save_pretrained`
    (`./sdxl` where it is named like one of these), or a Hub id such as `org/name`. A folder or Hub repository is
    read only for its configurations, tokenizers and the headers of its safetensors files; each component gets the
    dtype of its files. `quantize` says which components are quantized how, by a name of `quantization_names()`, as if
    their libraries had loaded them: `{"transformer": "nf4"}`. None of these libraries is needed. Raises `UsageError` for
    a model that cannot be found or built, and for a component that cannot be quantized so.
    """
    find_quantizations(quantize or {})  # before anything takes time
    pipe = _load(model)
    if quantize:
        from vramtune.catalog.quantize import quantize_components

        quantize_components(pipe, quantize)
    return pipe


def _load(model: str) -> "DiffusionPipeline | ModularPipeline":
    # torch and diffusers are imported where a pipeline is built, so that listing names takes milliseconds
    expect_model(model)
    expect_pipelines("To build a pipeline")
    if (entry := find(model)) is not None:
        from vramtune.catalog.pipelines import BUILDERS

        return BUILDERS[entry.name]()
    if is_folder(model):
        from vramtune.catalog.folder import load_folder

        return load_folder(user_path(model))
    from vramtune.catalog.hub import load_hub

    return load_hub(model)


def expect_model(model: str) -> None:
    """Raise a `UsageError` for what is no name of `names()`, no folder and no Hub id."""
    if find(model) is None and not is_folder(model) and not HUB_ID.fullmatch(model):
        raise _unknown(model)


def find(model: str) -> Entry | None:
    """The entry that `load` builds; None for a folder or a Hub id. Raises `UsageError` for what cannot name a model."""
    if not _is_name(model):
        raise UsageError(f"A model is named by a str without NUL characters; got {model!r}.")
    return None if PATH_SIGNS.search(model) else find_entry(model)


def _is_name(model: object) -> bool:
    return isinstance(model, str) and "\0" not in model


def _unknown(model: str) -> UsageError:
    if PATH_SIGNS.search(model):
        problem = "is a file, not a folder" if is_there(model) else "does not exist"
        return UsageError(
            f"{model!r} {problem}. Give a folder written by a pipeline's `save_pretrained`, "
            f"a Hub id such as 'org/name', or one of: {', '.join(names())}."
        )
    return UnknownNameError("model", model, names())
