"""A pipeline from a folder, with its weights left in their safetensors files, which are mapped and never written to."""

import warnings
from pathlib import Path
from typing import Any

import msgspec
import torch

from vramtune.catalog.dtypes import data_bytes
from vramtune.catalog.folder import folder_dtypes, read_index
from vramtune.errors import FileError, UsageError
from vramtune.schema import checked_path, read_file

MAX_INDEX_BYTES = 2**26


def load_mapped(pipeline_class: Any, folder: str | Path, *, torch_dtype: Any = None, variant: str | None = None) -> Any:
    """The pipeline that `from_pretrained` makes of a local folder; no weights are read.

    `torch_dtype` as there; left out, each component has the dtype of its files, and all its weights stay in them. What is
    of another dtype is cast as it is read, into memory. Raises a `FileError` for a file that is missing, or cut off.
    """
    path = checked_path(folder).expanduser()
    if not hasattr(pipeline_class, "from_pretrained"):
        raise UsageError(
            f"A pipeline is loaded by its class, such as diffusers.FluxPipeline; got {type(pipeline_class).__name__}."
        )
    if not path.is_dir():
        raise UsageError(
            f"{str(path)!r} is no folder. Weights stay in files that are here: give a folder written by `save_pretrained`, "
            "or by `huggingface-cli download`."
        )
    read_index(path)
    check_weights(path)
    dtypes = folder_dtypes(path) if torch_dtype is None else torch_dtype
    if isinstance(dtypes, dict):
        dtypes = {"default": torch.float32, **dtypes}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch_dtype.*")
        return pipeline_class.from_pretrained(
            path, torch_dtype=dtypes, variant=variant, use_safetensors=True, local_files_only=True
        )


def check_weights(folder: Path) -> None:
    """Raise a `FileError` for weights that are not there, or not whole."""
    for index in sorted(folder.glob("*/*.safetensors.index*.json")):
        for name in sorted(_shards(index)):
            if not (index.parent / name).exists():
                raise FileError(
                    f"{str(index.parent / name)!r} is missing: {index.name} names it. Download the pipeline again."
                )
    for file in sorted(folder.glob("*/*.safetensors")):
        expected, found = data_bytes(file), file.stat().st_size
        if found != expected:
            raise FileError(
                f"{str(file)!r} has {found} bytes where its header says {expected}: it is cut off or was changed. Download it "
                "again."
            )


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def _shards(index: Path) -> set[str]:
    try:
        return set(msgspec.json.decode(read_file(index, max_bytes=MAX_INDEX_BYTES), type=_Index).weight_map.values())
    except msgspec.MsgspecError as error:
        raise FileError(f"{str(index)!r} is damaged: {error}.") from error
