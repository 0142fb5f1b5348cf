"""A pipeline from a folder that `save_pretrained` wrote, without reading its weights."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights

from vramtune.catalog.dtypes import cast, header_counts, stored_dtypes
from vramtune.catalog.limits import MAX_CONFIG_BYTES, bounded, check_config, check_files
from vramtune.errors import FileError, UsageError
from vramtune.schema import read_file

INDEX = "model_index.json"
CONFIG = "config.json"


def load_folder(folder: Path) -> diffusers.DiffusionPipeline:
    """The pipeline in the folder; each component has the dtype of its files."""
    read_index(folder)  # a folder of something else is not searched
    check_files(folder)
    return build(folder, dtypes=folder_dtypes(folder))


def folder_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """The dtype of each component that has safetensors files in the folder."""
    file_names = [file.relative_to(folder).as_posix() for file in folder.glob("*/*.safetensors")]
    return stored_dtypes(file_names, counts_of=lambda name: header_counts(folder / name))


def build(folder: Path, *, dtypes: Mapping[str, torch.dtype]) -> diffusers.DiffusionPipeline:
    """The pipeline whose configurations are in the folder, in the given dtypes (by default float32).

    `DiffusionPipeline.from_pretrained` would read the weights of components with a default of None (Wan's
    transformer) even where they are given. The safety checker of Stable Diffusion is left out: its forward depends on
    the values of its output. `_optional_components` is in `diffusers/pipelines/pipeline_utils.py`.
    """
    index = read_index(folder)
    pipeline_class = find_class("pipeline", library="diffusers", class_name=index["_class_name"])
    accepted = inspect.signature(pipeline_class).parameters
    try:
        arguments: dict[str, Any] = dict.fromkeys(pipeline_class._optional_components)
        for name, value in index.items():
            if name not in accepted:  # nothing is looked for by a name that no pipeline has
                continue
            is_component = isinstance(value, list) and len(value) == 2
            arguments[name] = _component(folder / name, *value, dtypes=dtypes) if is_component else value
        if "safety_checker" in arguments:
            arguments |= {"safety_checker": None, "requires_safety_checker": False}
        return pipeline_class(**{name: value for name, value in arguments.items() if name in accepted})
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"Cannot build the pipeline in {str(folder)!r}: {error}") from error


def read_index(folder: Path) -> dict[str, Any]:
    """What `model_index.json` says; raises `UsageError` where there is none, `FileError` where it is damaged."""
    file = folder / INDEX
    if not file.exists():
        content = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise UsageError(
            f"{str(folder)!r} is not a folder written by a pipeline's `save_pretrained`: it has no {INDEX} "
            f"(found: {content}). Give the folder that holds that file."
        )
    index = read_json(file)
    if not isinstance(index.get("_class_name"), str):
        raise FileError(
            f"{str(file)!r} is damaged or belongs to a custom pipeline: it does not name a class of diffusers."
        )
    return index


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; raises a `FileError` for a file that is too large, or holds anything else."""
    try:
        content = json.loads(read_file(file, max_bytes=MAX_CONFIG_BYTES))
    except FileError:
        raise
    except (ValueError, RecursionError) as error:
        raise FileError(f"{str(file)!r} is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise FileError(f"{str(file)!r} is damaged: it holds a {type(content).__name__}.")
    return content


def _component(folder: Path, library: str | None, class_name: str | None, *, dtypes: Mapping[str, torch.dtype]) -> Any:
    """The component that `model_index.json` names: None, an empty module, a tokenizer, a scheduler, ..."""
    if library is None or class_name is None or folder.name == "safety_checker":
        return None
    cls = find_class(folder.name, library=library, class_name=class_name)
    if not folder.is_dir():
        raise UsageError(f"The component {folder.name!r} is missing: there is no folder {str(folder)!r}.")
    if issubclass(cls, torch.nn.Module):
        return _empty_module(folder, cls=cls, dtype=dtypes.get(folder.name, torch.float32))
    return cls.from_pretrained(folder, local_files_only=True)


def find_class(name: str, *, library: str, class_name: str) -> Any:
    """A class of diffusers, transformers, or one of diffusers' own pipeline modules."""
    libraries = {"diffusers": diffusers, "transformers": transformers}
    module = libraries.get(library) or getattr(diffusers.pipelines, library, None)
    cls = getattr(module, class_name, None)
    if not isinstance(cls, type):
        raise UsageError(
            f"{name!r} is a {class_name} of {library!r}, which diffusers {diffusers.__version__} and "
            f"transformers {transformers.__version__} do not have. Load the pipeline in Python and profile it."
        )
    return cls


def _empty_module(folder: Path, *, cls: Any, dtype: torch.dtype) -> torch.nn.Module:
    """The component of that class, in eval mode, its parameters on the meta device."""
    if not (folder / CONFIG).exists():
        raise UsageError(f"The component {folder.name!r} has no {CONFIG} in {str(folder)!r}.")
    written = read_json(folder / CONFIG)
    check_config(written, component=folder.name)
    if "quantization_config" in written:
        raise UsageError(
            f"The component {folder.name!r} is quantized, and only its quantizer knows its size. "
            "Load the pipeline in Python and profile it."
        )
    # as each library does: under a meta device, some diffusers models (Qwen-Image, Lumina 2) would keep tables of
    # positions without values; without one, transformers unties weights
    module: torch.nn.Module
    if issubclass(cls, diffusers.ConfigMixin):
        with init_empty_weights(), bounded(folder.name):
            module = cls.from_config(cls.load_config(folder))
    else:
        config = cls.config_class.from_pretrained(folder)
        with torch.device("meta"), bounded(folder.name):
            module = cls(config)
    cast(module, dtype=dtype)
    return module.eval()
