"""Weights cast once and kept in files: a component of another dtype than its files', which stays in files all the same.

Only in a folder that the user names. A component is a folder of its own there, named by what it was made from, and
appears in one step when all of it is written: whatever interrupts that leaves nothing that looks like a component.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vramtune.catalog.dtypes import kept_in_float32
from vramtune.catalog.weight_files import INDEX_SUFFIX, check_safetensors, dtype_of
from vramtune.errors import FileError
from vramtune.units import MIB

SHARD_BYTES = 512 * MIB
"""What is in memory at once while weights are cast; a larger tensor is a shard by itself."""
Shard = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class CastComponent:
    """A component's folder, and what its weights are to become."""

    folder: Path
    files: Sequence[Path]
    """Those that hold its weights."""
    cls: Any
    """Its class, which may keep some weights in float32."""
    dtype: torch.dtype

    @property
    def is_needed(self) -> bool:
        """Whether most of its weights have another dtype; a few that have are cast into memory in any case."""
        return dtype_of(self.files) != self.dtype

    @property
    def name(self) -> str:
        """The name of its folder in the cache; one made from other files, or before they were changed, has another."""
        status = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in self.files]
        made_from = hashlib.sha256(repr(status).encode()).hexdigest()[:16]
        return f"{self.folder.name}-{str(self.dtype).removeprefix('torch.')}-{made_from}"

    def shards(self) -> Iterator[Shard]:
        """The weights as `from_pretrained(torch_dtype=dtype)` makes them, some at a time.

        What it keeps in float32 is left as it is, and cast, if at all, as it is read.
        """
        kept, shard, num_bytes = kept_in_float32(self.cls, dtype=self.dtype), Shard(), 0
        for file in self.files:
            with safe_open(file, framework="pt") as weights:
                for path in weights.offset_keys():
                    tensor = weights.get_tensor(path)
                    if tensor.is_floating_point() and not kept & set(path.split(".")):
                        tensor = tensor.to(self.dtype)
                    if shard and num_bytes + tensor.nbytes > SHARD_BYTES:
                        yield shard
                        shard, num_bytes = Shard(), 0
                    shard[path], num_bytes = tensor.contiguous(), num_bytes + tensor.nbytes
        yield shard


def cast_once(component: CastComponent, cache: Path) -> Path:
    """The folder with the component's weights in its dtype; they are written if it is not there yet.

    Raises a `FileError` where that cannot be done; nothing is left of it then. What a process that was killed has left is
    deleted by the next one.
    """
    target = cache / component.name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{component.name}.lock"):  # which the system lets go of when a process ends, however
            if not target.exists():
                _write_whole(component, target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FileError(
            f"Cannot write {component.folder.name!r} in {component.dtype} to {str(cache)!r}: {reason}. Nothing is left of it. "
            "Name another folder, or leave it out: weights are then cast into memory."
        ) from error
    for file in target.glob("*.safetensors"):
        check_safetensors(file)
    return target


def _write_whole(component: CastComponent, target: Path) -> None:
    beside = target.with_name(f".{target.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir()
        _write(component, beside)
        for file in beside.iterdir():
            _flush(file)
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write(component: CastComponent, folder: Path) -> None:
    stem = component.files[0].name.partition(".")[0].partition("-")[0]  # what its library looks for
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number, shard in enumerate(component.shards(), start=1):
        name = f"{stem}-{number:05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
        total_bytes += sum(tensor.nbytes for tensor in shard.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / f"{stem}{INDEX_SUFFIX}.json").write_bytes(msgspec.json.encode(index))
    for file in component.folder.glob("*.json"):
        if INDEX_SUFFIX not in file.name:
            shutil.copyfile(file, folder / file.name)


def _flush(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
