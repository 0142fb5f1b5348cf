"""How long it takes to stage weights that lie in a file, with and without a thread that reads ahead, on this machine's storage.

    python -m benchmarks.reading_ahead                    # writes results/reading_ahead_<date>.md; a minute
    python -m benchmarks.reading_ahead --folder /data     # on another file system

A file of 1 GiB is written; the system forgets it before each timing. Groups of 64 MiB are staged slot by slot with the
functions of `vramtune.offload.staging`; there is no device to copy to. Nothing else should use the drive.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from benchmarks.results_file import environment, table, write_result
from vramtune.layout import STAGING_SLOTS
from vramtune.mapped_files import MappedFiles, cached_fraction
from vramtune.offload.groups import Group, HeldTensor
from vramtune.offload.staging import Part, cut, fill, read
from vramtune.plain_tensors import PlainTensor
from vramtune.units import MIB

FILE_BYTES, GROUP_BYTES, SLOT_BYTES = 1024 * MIB, 64 * MIB, 16 * MIB
NUM_ROUNDS = 11
"""Of all of them in turn: the drive's pace changes."""
MOST_CACHED_FRACTION = 0.05


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the file is written (default: the system's own)"
    )
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as folder:
        file = Path(folder) / "weights"
        write(file)
        seconds: dict[str, list[float]] = {name: [] for name in WAYS}
        for name in tqdm([*WAYS] * NUM_ROUNDS, unit="timing"):
            seconds[name].append(timed(WAYS[name], file))
    typical = {name: median(values) for name, values in seconds.items()}
    lines = [
        "# Staging from storage, with and without reading ahead",
        "",
        *environment(
            "python -m benchmarks.reading_ahead",
            gpu=f"no GPU used; wall clock, of {NUM_ROUNDS} rounds the median, lowest and highest",
        ),
        "",
        *table(
            ["1 GiB", "seconds", "from", "to", "GB/s", "by one thread's"],
            [
                [
                    name,
                    *(f"{each:.3f}" for each in (value, min(seconds[name]), max(seconds[name]))),
                    f"{FILE_BYTES / value / 1e9:.2f}",
                    f"{value / typical[ONE_THREAD]:.2f}",
                ]
                for name, value in typical.items()
            ],
        ),
    ]
    print(*lines, write_result("reading_ahead", lines), sep="\n")


def write(file: Path) -> None:
    """A file of random bytes, on the drive."""
    with file.open("wb") as out:
        for _ in range(FILE_BYTES // GROUP_BYTES):
            out.write(os.urandom(GROUP_BYTES))
        out.flush()
        os.fsync(out.fileno())


def timed(way: Callable[[list[Part], torch.Tensor], None], file: Path) -> float:
    """Seconds of one way to stage a file of which nothing is in memory."""
    descriptor = os.open(file, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    mapped = torch.from_file(str(file), shared=False, size=FILE_BYTES, dtype=torch.uint8)
    if cached_fraction(mapped) > MOST_CACHED_FRACTION:
        raise SystemExit(f"The system keeps {str(file)!r} in memory. Name another file system: --folder")
    parts = [
        part for start in range(0, FILE_BYTES, GROUP_BYTES) for part in parts_of(mapped[start : start + GROUP_BYTES])
    ]
    slots = torch.ones(STAGING_SLOTS, SLOT_BYTES, dtype=torch.uint8)
    began = time.perf_counter()
    way(parts, slots)
    return time.perf_counter() - began


def parts_of(weight: torch.Tensor) -> list[Part]:
    """A group that is one weight, as it is staged."""
    group = Group("weight", [HeldTensor(PlainTensor(weight, ""), weight, [], weight.device)], is_locked=False)
    group.settle_on_host(torch.device("cpu"))
    return cut(group, SLOT_BYTES, MappedFiles())


def by_one_thread(parts: list[Part], slots: torch.Tensor) -> None:
    for number, part in enumerate(parts):
        fill(slots[number % STAGING_SLOTS], part)


def read_ahead(parts: list[Part], slots: torch.Tensor) -> None:
    with ThreadPoolExecutor(1) as reader:
        reading = [reader.submit(read, part) for part in parts]
        for number, (part, is_read) in enumerate(zip(parts, reading, strict=True)):
            is_read.result()
            fill(slots[number % STAGING_SLOTS], part)


def read_only(parts: list[Part], _: torch.Tensor) -> None:
    for part in parts:
        read(part)


ONE_THREAD = "read and copied by one thread"
WAYS = {ONE_THREAD: by_one_thread, "read ahead by a second one": read_ahead, "read, not copied": read_only}


if __name__ == "__main__":
    main()
