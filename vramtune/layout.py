"""How weights lie in memory, once for planner and runtime: rounding, pieces, slots, places in a ring of bytes, staging.

Pure arithmetic on ints; needs nothing else of the package.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

ALIGNMENT_BYTES = 512
"""PyTorch's caching allocator rounds every request up to a multiple of this (`kMinBlockSize` in
`c10/core/AllocatorConfig.h`, as the figures below), and a group's flat buffer starts each tensor at one."""
SMALL_REQUEST_BYTES = 2**20
SMALL_SEGMENT_BYTES = 2 * 2**20
MEDIUM_REQUEST_BYTES = 10 * 2**20
MEDIUM_SEGMENT_BYTES = 20 * 2**20
LARGE_SEGMENT_ROUNDING_BYTES = 2 * 2**20
LEAST_PIECE_BYTES = 64 * 2**20
"""Groups that stay on the device share pieces of at least so much, where there are as many..."""
MOST_WASTED_FRACTION = 0.001
"""...and until no more than this is lost by rounding a piece up to what the allocator takes."""
STAGING_SLOTS = 4
"""Page-locked slots through which weights in ordinary memory reach the device: one is filled, others are being copied."""
MOST_STAGING_SLOT_BYTES = 16 * 2**20
"""From here on a larger slot copies no faster."""
MOST_STAGING_SHARE = 4
"""One part in so many of what may be page-locked is for the slots, at the most."""


def round_up(num_bytes: int, multiple: int = ALIGNMENT_BYTES) -> int:
    """The next multiple that holds so many bytes; 0 stays 0."""
    return -(-num_bytes // multiple) * multiple


def rounded_bytes(num_bytes: int) -> int:
    """Bytes that a request takes from a block of PyTorch's caching allocator."""
    return max(ALIGNMENT_BYTES, round_up(num_bytes))


def segment_bytes(block_bytes: int) -> int:
    """Bytes that PyTorch's CUDA allocator takes of the driver when no cached block serves a rounded request."""
    if block_bytes <= SMALL_REQUEST_BYTES:
        return SMALL_SEGMENT_BYTES
    if block_bytes < MEDIUM_REQUEST_BYTES:
        return MEDIUM_SEGMENT_BYTES
    return round_up(block_bytes, LARGE_SEGMENT_ROUNDING_BYTES)


def asked_bytes(num_bytes: int) -> int:
    """What to ask that allocator for, to have so many bytes and whole segments, in which nothing else comes to lie.

    Small requests share segments.
    """
    if num_bytes <= SMALL_REQUEST_BYTES:
        return num_bytes
    return segment_bytes(max(num_bytes, MEDIUM_REQUEST_BYTES))


def taken_bytes(num_bytes: int) -> int:
    """What that allocator takes of the driver, at the most, when asked for `asked_bytes`; nothing for nothing."""
    return segment_bytes(asked_bytes(num_bytes)) if num_bytes else 0


def piece_ends(sizes: Sequence[int], kept: Sequence[int], *, is_root_apart: bool) -> list[int]:
    """Where a placement's pieces of device memory end: numbers of groups in keep order.

    Groups that stay share pieces that lose little by rounding; of the others, those that come and go together share
    one. `kept` is how many are on the device, by stage. A root that several placements have lies apart.
    """
    ends = {count for count in kept if count}
    if is_root_apart:
        ends.add(1)
    num_bytes = 0
    for number, size in enumerate(sizes[: min(kept)], 1):
        num_bytes += size
        wasted = taken_bytes(num_bytes) - num_bytes
        if number in ends or (num_bytes >= LEAST_PIECE_BYTES and wasted <= MOST_WASTED_FRACTION * num_bytes):
            ends.add(number)
            num_bytes = 0
    return sorted(ends)


@lru_cache(maxsize=2**14)
def kept_bytes(sizes: tuple[int, ...], kept: tuple[int, ...], *, is_root_apart: bool) -> tuple[int, ...]:
    """What PyTorch's CUDA allocator takes for the pieces of a placement's kept groups, by stage."""
    taken, start = {0: 0}, 0
    for end in piece_ends(sizes, kept, is_root_apart=is_root_apart):
        taken[end] = taken[start] + taken_bytes(sum(sizes[start:end]))
        start = end
    return tuple(taken[count] for count in kept)


def small_pieces(sizes: Sequence[int], kept: Sequence[int], *, is_root_apart: bool, count: int) -> list[int]:
    """Bytes of a placement's pieces that share a segment with other small tensors, of its first `count` groups."""
    ends = [0, *(end for end in piece_ends(sizes, kept, is_root_apart=is_root_apart) if end <= count)]
    pieces = (sum(sizes[start:end]) for start, end in pairwise(ends))
    return [num_bytes for num_bytes in pieces if 0 < num_bytes <= SMALL_REQUEST_BYTES]


def workspace_block_bytes(taken_bytes: int) -> int:
    """cuBLAS's workspace where so much is taken for it: before Hopper 8.1 MiB of a segment of 20, later its whole segment.

    `_parseChosenWorkspaceSize` in `aten/src/ATen/cuda/CublasHandlePool.cpp`.
    """
    return 8_519_680 if taken_bytes == MEDIUM_SEGMENT_BYTES else taken_bytes


def ring_bytes(num_slots: int, *, largest_absent_bytes: int, absent_bytes: int) -> int:
    """Bytes of the ring that absent groups are streamed through.

    A slot is as large as the largest absent group; a ring larger than all of them together would stay empty.
    """
    return min(num_slots * largest_absent_bytes, absent_bytes)


def next_place(head: int, num_bytes: int, ring_bytes: int) -> int:
    """Where in an endless tape of rings the next place starts, when `head` bytes have been handed out.

    A place never wraps around the end of the ring. It overwrites every place that starts before
    `next_place(...) + num_bytes - ring_bytes`.
    """
    left = ring_bytes - head % ring_bytes
    return head if num_bytes <= left else head + left


def staging_slot_bytes(largest_bytes: int, lockable_bytes: int | None) -> int:
    """Bytes of one staging slot, where the largest group has so many, and so much may be page-locked (None: no limit).

    At least two slots make a group, so that what fills them and what copies from them overlap.
    """
    most = MOST_STAGING_SLOT_BYTES
    if lockable_bytes is not None:
        most = min(most, lockable_bytes // (MOST_STAGING_SHARE * STAGING_SLOTS) // ALIGNMENT_BYTES * ALIGNMENT_BYTES)
    return max(min(round_up(-(-largest_bytes // 2)), most), ALIGNMENT_BYTES)
