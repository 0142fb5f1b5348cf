"""How fast this machine reads weight files: from storage, and from what the system keeps of them in memory (page cache).

Timed as weights are read ahead of their staging: by the page faults of a mapped file. Once for each file system, in about a
second, and remembered.
"""

import hashlib
import logging
import os
import time
from contextlib import suppress
from datetime import date
from pathlib import Path
from statistics import median

import psutil
import torch

from vramtune.errors import FileError
from vramtune.machine.remembered import keep
from vramtune.mapped_files import cached_fraction, read_in
from vramtune.paths import cache_folder
from vramtune.schema import StorageRates
from vramtune.units import MIB

LEAST_BYTES = 32 * MIB
"""Of less nothing can be told."""
MOST_BYTES = 128 * MIB
PIECE_BYTES = 16 * MIB
NUM_ROUNDS = 3
"""Of reading from storage, and then from page cache: other programs use both."""
ENOUGH_SECONDS = 0.15
"""Of a round's reading from storage; a slow drive gets through less."""
MOST_CACHED_FRACTION = 0.05
"""Where more of a file stays in memory although the system was told to let it go, storage is not what is timed."""

logger = logging.getLogger(__name__)


def storage_rates(file: Path) -> StorageRates | None:
    """The rates of the file system on which a file lies, as remembered, or measured now and remembered.

    None where they cannot be measured: a small file, one that the system does not let go of (other programs have it mapped, or
    it lies in memory), a system without `posix_fadvise`.
    """
    place = cache_folder() / f"storage-{_identity(file)}.json"
    try:
        if place.exists():
            return StorageRates.load(place)
    except (OSError, FileError) as error:
        logger.warning("What was measured here before is lost: %s", error)
    rates = measure_storage(file)
    if rates is not None:
        keep(place, rates)
    return rates


def measure_storage(file: Path) -> StorageRates | None:
    """The same, measured in any case. The system's cache lets go of the beginning of the file, and it is read."""
    try:
        num_bytes = min(file.stat().st_size // PIECE_BYTES * PIECE_BYTES, MOST_BYTES)
        if num_bytes < LEAST_BYTES:
            return None
        cold, warm = list[float](), list[float]()  # seconds for a byte
        for _ in range(NUM_ROUNDS):
            if not _let_go(file, num_bytes):
                return None
            read_bytes, seconds = _read(file, num_bytes, ENOUGH_SECONDS)
            cold.append(seconds / read_bytes)
            warm.append(_read(file, read_bytes)[1] / read_bytes)
    except (OSError, RuntimeError) as error:  # removed meanwhile; RuntimeError: PyTorch cannot map it
        logger.debug("%s cannot be read: %s", file, error)
        return None
    rates = StorageRates(
        measured_on=date.today().isoformat(),
        storage_bytes_per_second=1 / median(cold),
        page_cache_bytes_per_second=1 / min(warm),
    )
    logger.debug("measured the file system of %s: %s", file, rates)
    return rates


def _let_go(file: Path, num_bytes: int) -> bool:
    """Have the system forget the beginning of a file; whether it did."""
    if not hasattr(os, "posix_fadvise"):
        return False
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, num_bytes, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return cached_fraction(_mapped(file, num_bytes)) <= MOST_CACHED_FRACTION


def _read(file: Path, num_bytes: int, enough_seconds: float = float("inf")) -> tuple[int, float]:
    """Read the beginning of a file, until that has taken enough; the bytes, and the seconds."""
    source, done = _mapped(file, num_bytes), 0
    began = time.perf_counter()
    while done < num_bytes and (done == 0 or time.perf_counter() - began < enough_seconds):
        read_in(source[done : done + PIECE_BYTES])
        done += PIECE_BYTES
    return done, time.perf_counter() - began


def _mapped(file: Path, num_bytes: int) -> torch.Tensor:
    return torch.from_file(str(file), shared=False, size=num_bytes, dtype=torch.uint8)


def _identity(file: Path) -> str:
    """Of the file system: where it is mounted, and from what."""
    path = file.resolve()
    found = ""
    with suppress(OSError):  # what is mounted cannot be read: one for all
        inside = (p for p in psutil.disk_partitions(all=True) if path.is_relative_to(p.mountpoint))
        nearest = max(inside, key=lambda partition: len(partition.mountpoint), default=None)
        found = f"{nearest.device} {nearest.mountpoint} {nearest.fstype}" if nearest is not None else ""
    return hashlib.sha256(found.encode()).hexdigest()[:16]
