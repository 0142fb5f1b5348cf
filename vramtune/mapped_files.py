"""Files that are mapped into this process's memory, as safetensors maps weights: the system reads them when they are used.

Such weights take no memory of their own: what is read is page cache, which the system gives up when it needs it. They are
mapped privately: what someone writes to a weight stays in memory, and the file is as it was. Only Linux says what is
mapped; elsewhere all weights count as in memory.
"""

import ctypes
import mmap
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vramtune import host_memory
from vramtune.errors import FileError

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class MappedFiles:
    """What is mapped at one moment, by address."""

    def __init__(self) -> None:
        self._ranges = sorted(_ranges())
        self._starts = [start for start, _, _ in self._ranges]

    def file_of(self, tensor: torch.Tensor) -> Path | None:
        """The file in which a tensor's bytes lie, or None."""
        index = self._range_of(tensor)
        return None if index is None else self._ranges[index][2]

    def _range_of(self, tensor: torch.Tensor) -> int | None:
        if not tensor.is_cpu or not tensor.numel():
            return None
        address = tensor.data_ptr()
        index = bisect_right(self._starts, address) - 1
        return None if index < 0 or address >= self._ranges[index][1] else index

    def let_go(self, tensors: Iterable[torch.Tensor]) -> None:
        """Take what was read of these tensors' files out of the process, from the first to the last in each file.

        The system may keep it as page cache, and reads it again when it is used. What someone wrote to is in memory only,
        and stays; where Linux does not tell which pages those are, nothing is done.
        """
        if _LIBC is None:
            return
        ends: dict[int, tuple[int, int]] = {}
        for tensor in tensors:
            if (index := self._range_of(tensor)) is not None:
                start, num_bytes = pages_around(tensor)
                first, last = ends.get(index, (start, start))
                ends[index] = min(first, start), max(last, start + num_bytes)
        for start, end in ends.values():
            for first, last in _unwritten(start, end):
                _LIBC.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def _unwritten(start: int, end: int) -> Iterator[tuple[int, int]]:
    """The stretches between two addresses whose pages are the file's: those that were written to are copies of them.

    `/proc/self/pagemap` has 64 bits for each page (`Documentation/admin-guide/mm/pagemap.rst` of Linux).
    """
    try:
        with (host_memory.PROC / "self" / "pagemap").open("rb") as pagemap:
            pagemap.seek(start // mmap.PAGESIZE * 8)
            entries = np.frombuffer(pagemap.read((end - start) // mmap.PAGESIZE * 8), np.uint64)
    except OSError:
        return
    is_file, is_swapped, is_present = ((entries & np.uint64(1 << bit)) != 0 for bit in (61, 62, 63))
    edges = np.flatnonzero(
        np.diff(np.concatenate(([True], is_swapped | (is_present & ~is_file), [True])).astype(np.int8))
    )
    for first, last in edges.reshape(-1, 2).tolist():
        yield start + first * mmap.PAGESIZE, start + last * mmap.PAGESIZE


def read_in(mapped: torch.Tensor) -> None:
    """Bring a mapped tensor's bytes into this process, from storage or page cache: a byte of each page is read.

    It must be a flat one of bytes. No lock of Python's is held meanwhile.
    """
    mapped[:: mmap.PAGESIZE].sum()
    mapped[-1:].sum()  # what begins within a page may end in one more


def cached_fraction(mapped: torch.Tensor) -> float:
    """The share of a mapped tensor's pages that are in memory; 1 where the system does not tell (Linux does)."""
    start, num_bytes = pages_around(mapped)
    found = (ctypes.c_ubyte * (num_bytes // mmap.PAGESIZE))()
    is_told = _LIBC is not None and _LIBC.mincore(ctypes.c_void_p(start), ctypes.c_size_t(num_bytes), found) == 0
    return sum(page & 1 for page in found) / max(len(found), 1) if is_told else 1.0


def pages_around(tensor: torch.Tensor) -> tuple[int, int]:
    """Address and bytes of the whole pages in which a dense tensor's bytes lie."""
    first = tensor.data_ptr() // mmap.PAGESIZE
    end = -(-(tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE)
    return first * mmap.PAGESIZE, (end - first) * mmap.PAGESIZE


def _ranges() -> Iterable[tuple[int, int, Path]]:
    """Start, end and file of each mapping that stands for one."""
    maps = host_memory.PROC / "self" / "maps"
    for line in maps.read_text().splitlines() if maps.exists() else ():
        words = line.split(maxsplit=5)
        if len(words) == 6 and words[5].startswith("/") and not words[5].endswith(" (deleted)"):
            start, end = (int(address, 16) for address in words[0].split("-"))
            yield start, end, Path(words[5])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A file as it was at one moment."""

    path: Path
    inode: int
    num_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> "Snapshot | None":
        """The file as it is now; None where it is not there any more."""
        try:
            status = path.stat()
        except OSError:
            return None
        return cls(path, status.st_ino, status.st_size, status.st_mtime_ns)

    def refuse_changed(self) -> None:
        """Raise a `FileError` where the file was written to: what is mapped is not what was loaded, or not there at all.

        One that was removed, or exchanged for another one, is still there for those who have mapped it.
        """
        now = Snapshot.of(self.path)
        if now is not None and now.inode == self.inode and now != self:
            was, found = self.num_bytes, now.num_bytes
            how = f"it had {was} bytes and has {found}" if was != found else "it was written to"
            raise FileError(
                f"{str(self.path)!r} holds weights of this pipeline that are not in memory, and was changed since it was "
                f"loaded: {how}. Put the file back as it was and load the pipeline again."
            )


def snapshots(tensors: Iterable[torch.Tensor]) -> tuple[Snapshot, ...]:
    """The files in which these tensors lie, as they are now."""
    mapped = MappedFiles()
    paths = dict.fromkeys(path for tensor in tensors if (path := mapped.file_of(tensor)) is not None)
    return tuple(known for path in paths if (known := Snapshot.of(path)) is not None)
