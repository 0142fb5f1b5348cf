"""How fast files are read is measured where the system lets go of them, remembered, and otherwise assumed."""

import logging
import mmap
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from tests import tiny_pipelines
from vramtune import mapped_files
from vramtune.api.device import on_this_host
from vramtune.machine import remembered, storage
from vramtune.machine.gpus import find_gpu
from vramtune.mapped_files import cached_fraction, pages_around, read_in
from vramtune.paths import cache_folder
from vramtune.schema import StorageRates
from vramtune.units import MIB

RATES = StorageRates(measured_on="2026-11-27", storage_bytes_per_second=2e9, page_cache_bytes_per_second=9e9)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(bytes(40 * MIB))
    return path


def mapped(file: Path) -> torch.Tensor:
    return torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)


def test_what_was_just_read_in_is_in_memory(file: Path) -> None:
    tensor = mapped(file)
    read_in(tensor)
    assert cached_fraction(tensor) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which pages are in the process")
@pytest.mark.parametrize(("start", "end"), [(0, 4 * mmap.PAGESIZE), (100, mmap.PAGESIZE + 200), (300, 301), (7, 7)])
def test_every_page_of_a_stretch_is_read_in(tmp_path: Path, start: int, end: int) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(8 * mmap.PAGESIZE))
    stretch = mapped(path)[start:end]
    read_in(stretch)
    first, num_bytes = pages_around(stretch)
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        pagemap.seek(first // mmap.PAGESIZE * 8)
        entries = struct.unpack(f"{num_bytes // mmap.PAGESIZE}Q", pagemap.read(num_bytes // mmap.PAGESIZE * 8))
    assert all(entry >> 63 for entry in entries)


def test_without_linux_everything_counts_as_in_memory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_files, "_LIBC", None)
    assert cached_fraction(mapped(file)) == 1
    assert storage.measure_storage(file) is None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The seconds that each reading of a file is taken to last; the system lets go of files."""
    seconds = list[float]()
    monkeypatch.setattr(storage, "_let_go", lambda file, num_bytes: True)
    read = storage._read
    monkeypatch.setattr(storage, "_read", lambda *args: (read(*args)[0], seconds.pop(0)))
    yield seconds
    assert not seconds


def test_the_rates_are_the_usual_reading_from_storage_and_the_best_from_page_cache(
    file: Path, clock: list[float]
) -> None:
    clock[:] = [0.5, 0.1, 9.0, 0.2, 0.4, 0.3]
    rates = storage.measure_storage(file)
    assert rates is not None
    assert rates.storage_bytes_per_second == pytest.approx(32 * MIB / 0.5)
    assert rates.page_cache_bytes_per_second == pytest.approx(32 * MIB / 0.1)


def test_a_small_file_one_that_is_gone_and_one_that_stays_in_memory_are_not_measured(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "cached_fraction", lambda tensor: 0.5)
    assert storage.measure_storage(file) is None
    (tmp_path / "small").write_bytes(bytes(MIB))
    assert storage.measure_storage(tmp_path / "small") is None
    assert storage.measure_storage(tmp_path / "gone") is None


def test_one_measurement_stands_for_a_file_system_and_later_processes(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = list[Path]()

    def measure(each: Path) -> StorageRates:
        measured.append(each)
        return RATES

    monkeypatch.setattr(storage, "measure_storage", measure)
    assert storage.storage_rates(file) == storage.storage_rates(tmp_path / "other") == RATES
    assert measured == [file]
    (kept,) = cache_folder().glob("storage-*.json")
    assert StorageRates.load(kept) == RATES
    assert remembered.forget() == 1
    assert not kept.exists()
    storage.storage_rates(file)
    mounts = [*psutil.disk_partitions(all=True)]
    own = mounts[0]._replace(mountpoint=str(tmp_path), device="/dev/other")
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [*mounts, own])
    storage.storage_rates(file)
    assert len(measured) == 3


def test_a_damaged_file_is_said_and_measured_anew(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storage, "measure_storage", lambda file: RATES)
    storage.storage_rates(file)
    (kept,) = cache_folder().glob("storage-*.json")
    kept.write_bytes(kept.read_bytes()[:-30])
    with caplog.at_level(logging.WARNING, logger="vramtune"):
        assert storage.storage_rates(file) == RATES
    assert "What was measured here before is lost" in caplog.text


def test_a_pipeline_in_files_is_planned_for_with_their_rates_and_another_with_assumed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tiny_pipelines.build("flux")
    pipe.save_pretrained(tmp_path)
    gpu = replace(find_gpu("RTX 4060"), ram_bytes=0)
    asked = list[Path]()

    def rates(file: Path) -> StorageRates:
        asked.append(file)
        return RATES

    monkeypatch.setattr(storage, "storage_rates", rates)
    in_memory = on_this_host(gpu, pipe)
    assert in_memory.storage_source == "assumed"
    assert asked == []
    in_files = on_this_host(gpu, type(pipe).from_pretrained(tmp_path))
    assert (in_files.storage_bytes_per_second, in_files.page_cache_bytes_per_second) == (2e9, 9e9)
    assert in_files.storage_source == "measured"
    assert (in_files.ram_bytes or 0) < 1000 < (in_memory.ram_bytes or 0), "buffers only"
    assert [file.parent.name for file in asked] == ["transformer"]
    monkeypatch.setattr(storage, "storage_rates", lambda file: None)
    assert on_this_host(gpu, type(pipe).from_pretrained(tmp_path)).storage_source == "assumed"
