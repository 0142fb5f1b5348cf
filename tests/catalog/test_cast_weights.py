"""Weights that are cast once into a folder of the user's: the same bits, whole or not at all."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from tests import tiny_pipelines
from tests.catalog.test_weights import assert_equal, not_in_files
from vramtune.catalog import cast_weights
from vramtune.catalog.weights import load_mapped
from vramtune.errors import FileError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Not there yet; weights are written to it in several shards."""
    monkeypatch.setattr(cast_weights, "SHARD_BYTES", 100_000)
    return tmp_path / "cast"


def load(folder: Path, cache: Path | None, dtype: Any = torch.float16) -> Any:
    return load_mapped(diffusers.FluxPipeline, folder, torch_dtype=dtype, cast_folder=cache)


def content(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file but for the locks, which stay."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock")
    return {str(f.relative_to(folder)): (f.stat().st_size, f.stat().st_mtime_ns) for f in files}


def test_what_is_cast_once_has_the_bits_of_a_cast_into_memory_and_stays_in_files(
    flux_in_files: Path, cache: Path
) -> None:
    want, pipe = load(flux_in_files, None), load(flux_in_files, cache)
    assert not_in_files(want)
    assert_equal(pipe, want)
    kept = {name for name in not_in_files(pipe) if name.startswith("text_encoder_2.") and name.endswith(".wo.weight")}
    assert not_in_files(pipe) == kept, "T5 keeps these in float32"
    assert {p.dtype for p in pipe.transformer.parameters()} == {torch.float16}
    assert len(list(cache.glob("transformer-float16-*/*.safetensors"))) > 2


def test_a_later_start_writes_nothing(flux_in_files: Path, cache: Path) -> None:
    load(flux_in_files, cache)
    before = content(cache)
    load(flux_in_files, cache)
    assert content(cache) == before


def test_files_that_were_changed_are_cast_anew(tmp_path: Path, cache: Path) -> None:
    pipe = tiny_pipelines.build("flux")
    pipe.save_pretrained(tmp_path / "pipe")
    load(tmp_path / "pipe", cache)
    with torch.no_grad():
        pipe.transformer.proj_out.weight.add_(1)
    pipe.transformer.save_pretrained(tmp_path / "pipe" / "transformer")
    assert_equal(load(tmp_path / "pipe", cache), load(tmp_path / "pipe", None))


def test_components_that_have_their_dtype_are_not_written(flux_in_files: Path, cache: Path) -> None:
    load(flux_in_files, cache, {"transformer": torch.bfloat16})
    (written,) = (folder for folder in cache.iterdir() if folder.is_dir())
    assert written.name.startswith("transformer-bfloat16-")


def test_a_cast_file_that_was_cut_off_is_named(flux_in_files: Path, cache: Path) -> None:
    load(flux_in_files, cache)
    file = sorted(cache.glob("vae-*/*.safetensors"))[0]
    os.truncate(file, file.stat().st_size - 10)
    with pytest.raises(FileError, match=f"{file.name}' has .* cut off"):
        load(flux_in_files, cache)


def test_a_full_disk_is_an_error_of_ours_and_leaves_nothing(flux_in_files: Path, cache: Path) -> None:
    before, limits = content(flux_in_files), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(FileError, match=r"Cannot write 'text_encoder.*Nothing is left of it"):
            load(flux_in_files, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert content(cache) == {}
    assert content(flux_in_files) == before
    load(flux_in_files, cache)


def test_an_interrupt_leaves_nothing(flux_in_files: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = 0

    def interrupted(*args: Any, **kwargs: Any) -> None:
        nonlocal shards
        shards += 1
        if shards == 3:
            raise KeyboardInterrupt
        save(*args, **kwargs)

    save = cast_weights.save_file
    monkeypatch.setattr(cast_weights, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(flux_in_files, cache, {"transformer": torch.bfloat16})
    assert content(cache) == {}


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from transformers import T5EncoderModel
from vramtune.catalog import cast_weights
from vramtune.catalog.weight_files import weight_files

save, shards = cast_weights.save_file, 0

def killed(shard, file, **options):
    global shards
    save(shard, file, **options)
    shards += 1
    if shards == 2:
        os.truncate(file, 1000)
        os.kill(os.getpid(), signal.SIGKILL)

cast_weights.SHARD_BYTES, cast_weights.save_file = 10_000, killed
folder = Path(sys.argv[1]) / "text_encoder_2"
cast_weights.cast_once(cast_weights.CastComponent(
    folder=folder, files=weight_files(folder, None), cls=T5EncoderModel, dtype=torch.float16), Path(sys.argv[2]))
"""


def test_after_a_kill_in_the_middle_the_next_start_is_clean(flux_in_files: Path, cache: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(flux_in_files), str(cache)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = (folder for folder in cache.iterdir() if folder.is_dir())
    assert left.name.startswith(".text_encoder_2-float16-")
    assert_equal(load(flux_in_files, cache), load(flux_in_files, None))
    assert not any(name.startswith(".") for name in content(cache))
    assert not left.exists()
