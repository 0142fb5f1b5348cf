"""Which safetensors files hold a pipeline's weights, and whether they are there and whole."""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import msgspec
import torch

from vramtune.catalog.dtypes import data_bytes, header_counts, majority
from vramtune.catalog.folder import CONFIG
from vramtune.errors import FileError, UsageError
from vramtune.schema import read_file

MAX_INDEX_BYTES = 2**26
SHARD = re.compile(r"-\d+-of-\d+")
INDEX_SUFFIX = ".safetensors.index"
"""`model.safetensors.index.json`, of a variant `model.safetensors.index.fp16.json`."""


def weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The files from which `from_pretrained` reads a component: those of the variant, or where it has none the plain ones."""
    by_variant: dict[str | None, list[Path]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        by_variant.setdefault(_variant_of(file), []).append(file)
    return by_variant.get(variant) or by_variant.get(None, [])


def component_dtypes(folder: Path, names: Iterable[str], variant: str | None) -> dict[str, torch.dtype]:
    """The floating dtype of most numbers in the files of each component."""
    return {name: dtype_of(weight_files(folder / name, variant)) for name in names}


def dtype_of(files: Iterable[Path]) -> torch.dtype:
    """The floating dtype of most numbers in safetensors files."""
    return majority(sum(map(header_counts, files), Counter()))


def check_weights(folder: Path, index: dict[str, Any], variant: str | None, given: Collection[str]) -> list[str]:
    """The components that are to be loaded from the folder; a `FileError` for one whose weights are missing or not whole.

    `index` is `model_index.json`; `given` components come from elsewhere.
    """
    if variant is not None:
        _refuse_unknown_variant(folder, variant)
    listed = (name for name, value in index.items() if isinstance(value, list) and len(value) == 2 and value[0])
    names = [name for name in listed if name not in given and _has_weights(folder / name)]
    for name in names:
        _check_component(folder / name, variant)
    return names


def check_safetensors(file: Path) -> None:
    """A `FileError` for a file that is not as long as its header says."""
    expected, found = data_bytes(file), file.stat().st_size
    if found != expected:
        raise FileError(
            f"{str(file)!r} has {found} bytes where its header says {expected}: it is cut off or was changed. Download it "
            "again."
        )


def _has_weights(folder: Path) -> bool:
    """Whether the component is a model: tokenizers, schedulers and processors have configurations by other names."""
    return (folder / CONFIG).exists() and not (folder / "tokenizer_config.json").exists()


def _check_component(folder: Path, variant: str | None) -> None:
    files = weight_files(folder, variant)
    indices = {_variant_of(index): index for index in folder.glob(f"*{INDEX_SUFFIX}*.json")}
    if (index := indices.get(variant) or (None if files and _variant_of(files[0]) else indices.get(None))) is not None:
        for name in sorted(_shards(index)):
            if not (folder / name).exists():
                raise FileError(
                    f"{str(folder / name)!r} is missing: {index.name} names it. Download the pipeline again."
                )
    if not files:
        content = ", ".join(sorted(file.name for file in folder.iterdir())[:10])
        raise FileError(
            f"{str(folder)!r} holds no weights that can stay in their file: no safetensors file{_of(variant)} (found: "
            f"{content}). Download the pipeline again, with its safetensors files."
        )
    for file in files:
        check_safetensors(file)


def _of(variant: str | None) -> str:
    return f", plain or of the variant {variant!r}" if variant else ""


def _refuse_unknown_variant(folder: Path, variant: str) -> None:
    known = {_variant_of(file) for file in folder.glob("*/*.safetensors")} - {None}
    if variant not in known:
        there = ", ".join(sorted(filter(None, known))) or "none"
        raise UsageError(
            f"{str(folder)!r} has no files of the variant {variant!r}; variants found: {there}. Leave `variant` out for the "
            "plain files."
        )


def _variant_of(file: Path) -> str | None:
    """`fp16` of `model.fp16-00001-of-00002.safetensors` and of `model.safetensors.index.fp16.json`; None of plain ones."""
    name = file.name.removesuffix(".safetensors").removesuffix(".json").replace(INDEX_SUFFIX, "")
    return SHARD.sub("", name).partition(".")[2] or None


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def _shards(index: Path) -> set[str]:
    try:
        return set(msgspec.json.decode(read_file(index, max_bytes=MAX_INDEX_BYTES), type=_Index).weight_map.values())
    except msgspec.MsgspecError as error:
        raise FileError(f"{str(index)!r} is damaged: {error}.") from error
