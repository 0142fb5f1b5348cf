"""How weights lie in device memory, once for planner and runtime: rounding, slots, places in a ring of bytes.

Pure arithmetic on ints; needs nothing else of the package.
"""

ALIGNMENT_BYTES = 512
"""PyTorch's caching allocator rounds every request up to a multiple of this (`kMinBlockSize` in
`c10/core/AllocatorConfig.h`), and a group's flat buffer starts each tensor at one."""


def round_up(num_bytes: int, multiple: int = ALIGNMENT_BYTES) -> int:
    """The next multiple that holds so many bytes; 0 stays 0."""
    return -(-num_bytes // multiple) * multiple


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
