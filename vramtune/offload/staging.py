"""Weights in ordinary memory reach the device through a few page-locked slots, which a thread of its own fills.

It fills a slot, asks for the copy from it, and goes on with the next one once the device has done with what is there. What
lies in a file is read ahead of it by another thread. So what storage reads, what the host copies, what the device copies
and what it computes overlap.
"""

from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from typing import NamedTuple

import torch

from vramtune.layout import STAGING_SLOTS
from vramtune.mapped_files import MappedFiles, read_in
from vramtune.offload.groups import Group, flat_bytes
from vramtune.offload.pinned import pinned_buffer


class Part(NamedTuple):
    """A stretch of a group that goes through a slot at once."""

    start: int
    """In the group's bytes."""
    num_bytes: int
    pieces: list[tuple[int, torch.Tensor]]
    """Bytes of the master, and where they go in the slot."""
    in_files: list[torch.Tensor]
    """What of them lies in files."""


@dataclass(slots=True, eq=False)
class Slot:
    """Page-locked memory, and the event of the last copy from it."""

    flat: torch.Tensor
    copied: torch.Event
    is_used: bool = False


class Staging:
    """A copy stream of its own, the thread that fills the slots in turn, and the one that reads files ahead of it."""

    def __init__(self, device: torch.device, slot_bytes: int) -> None:
        self.stream = torch.Stream(device=device)
        self._filler: Executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vramtune-staging")
        self._reader: Executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vramtune-reading")
        self._slot_bytes = slot_bytes
        num_bytes = STAGING_SLOTS * slot_bytes
        locked = pinned_buffer(num_bytes, device)
        flat = torch.empty(num_bytes, dtype=torch.uint8, device="cpu") if locked is None else locked
        starts = range(0, num_bytes, slot_bytes)
        self._turns = cycle([Slot(flat[start : start + slot_bytes], torch.Event(device=device)) for start in starts])
        self._parts: dict[Group, tuple[list[torch.Tensor], list[Part]]] = {}
        """Of each group, with the views of its master that they were made from."""
        self._mapped: MappedFiles | None = None
        """What is mapped, while one stage lasts."""

    def copy(
        self, group: Group, target: torch.Tensor, *, after: torch.Event | None, ready: torch.Event
    ) -> Future[torch.Event]:
        """Ask for a group's copy, after an event of the compute stream.

        The future is there when all of it has been asked of the device: `ready` is recorded behind it then.
        """
        parts = self._parts_of(group)
        reading = [self._reader.submit(read, part) if part.in_files else None for part in parts]

        def run() -> torch.Event:
            if after is not None:
                self.stream.wait_event(after)
            for part, is_read in zip(parts, reading, strict=True):
                if is_read is not None:
                    is_read.result()
                self._stage(part, target)
            ready.record(self.stream)
            return ready

        return self._filler.submit(run)

    def drain(self) -> None:
        """Wait until all that was asked for has been asked of the device, or has failed."""
        self._filler.submit(lambda: None).result()  # one after the other
        self._mapped = None

    def end(self) -> None:
        """End the threads; nothing is staged any more."""
        self._filler.shutdown()
        self._reader.shutdown()

    def _stage(self, part: Part, target: torch.Tensor) -> None:
        slot = next(self._turns)
        if slot.is_used:
            slot.copied.synchronize()
        fill(slot.flat, part)
        with self.stream:
            target[part.start : part.start + part.num_bytes].copy_(slot.flat[: part.num_bytes], non_blocking=True)
        slot.copied.record(self.stream)
        slot.is_used = True

    def _parts_of(self, group: Group) -> list[Part]:
        known = self._parts.get(group)
        if known is None or known[0] is not group.master_views:
            self._mapped = self._mapped or MappedFiles()
            known = self._parts[group] = group.master_views, cut(group, self._slot_bytes, self._mapped)
        return known[1]


def read(part: Part) -> None:
    """Bring what of a part lies in files into memory."""
    for source in part.in_files:
        read_in(source)


def fill(flat: torch.Tensor, part: Part) -> None:
    """Copy a part of a group's master into a slot."""
    for start, source in part.pieces:
        flat[start : start + source.numel()].copy_(source)


def cut(group: Group, slot_bytes: int, mapped: MappedFiles) -> list[Part]:
    """A group's bytes as they lie in its copies, in parts that fit a slot."""
    parts = [
        Part(start, min(slot_bytes, group.num_bytes - start), [], []) for start in range(0, group.num_bytes, slot_bytes)
    ]
    for extent, view in zip(group.extents, group.master_views, strict=True):
        source, done, is_in_file = flat_bytes(view), 0, mapped.file_of(view) is not None
        while done < extent.num_bytes:
            part = parts[(extent.offset + done) // slot_bytes]
            start = extent.offset + done - part.start
            size = min(extent.num_bytes - done, part.num_bytes - start)
            piece = source[done : done + size]
            part.pieces.append((start, piece))
            if is_in_file:
                part.in_files.append(piece)
            done += size
    return parts
