"""From allocated to reserved bytes by the rules of PyTorch's caching allocator.

Source: `c10/core/AllocatorConfig.h` and `c10/cuda/CUDACachingAllocator.cpp` (torch 2.13), default settings:
one stream, no expandable segments, no garbage collection, no largest split size.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vramtune.layout import (
    ALIGNMENT_BYTES,
    LARGE_SEGMENT_ROUNDING_BYTES,
    SMALL_REQUEST_BYTES,
    rounded_bytes,
    segment_bytes,
)

TOLERANCE_FRACTION = 0.005
"""How near the lowest limit is found, and steps above it."""
LONG_CALL = 50_000
"""Events, in a call of more of which steps are looked for that much less finely: a tiled decode has up to 700,000."""


@dataclass(slots=True, kw_only=True, eq=False)
class Block:
    """A stretch of a segment, free or in use, between its neighbours."""

    address: int
    num_bytes: int
    is_free: bool = True
    before: "Block | None" = None
    after: "Block | None" = None


@dataclass(slots=True, kw_only=True)
class Pool:
    """The free blocks for small or for large requests, in the order in which best fit tries them."""

    least_rest_bytes: int
    """Least remainder for which a block is split."""
    order: list[tuple[int, int]] = field(default_factory=list)
    """(bytes, address), ascending."""
    blocks: dict[int, Block] = field(default_factory=dict)
    """The free blocks by address."""

    def put(self, block: Block) -> None:
        """Add a free block."""
        block.is_free = True
        self.blocks[block.address] = block
        insort(self.order, (block.num_bytes, block.address))

    def withdraw(self, block: Block) -> None:
        """Remove a certain block."""
        del self.blocks[block.address]
        del self.order[bisect_left(self.order, (block.num_bytes, block.address))]

    def take(self, num_bytes: int) -> Block | None:
        """Remove the smallest free block that holds `num_bytes`, the lowest address first; None if none does."""
        index = bisect_left(self.order, (num_bytes, 0))
        if index == len(self.order):
            return None
        _, address = self.order.pop(index)
        return self.blocks.pop(address)

    def split(self, block: Block, num_bytes: int) -> None:
        """Put back what a taken block has beyond `num_bytes`, if the remainder is large enough."""
        rest_bytes = block.num_bytes - num_bytes
        if rest_bytes < self.least_rest_bytes:
            return
        rest = Block(address=block.address + num_bytes, num_bytes=rest_bytes, before=block, after=block.after)
        if rest.after is not None:
            rest.after.before = rest
        block.num_bytes, block.after = num_bytes, rest
        self.put(rest)

    def give_back(self) -> int:
        """Remove the segments that are free as a whole, and say how many bytes they are."""
        whole = [block for block in self.blocks.values() if block.before is None and block.after is None]
        for block in whole:
            self.withdraw(block)
        return sum(block.num_bytes for block in whole)

    def release(self, block: Block) -> None:
        """Free a block and join it with free neighbours."""
        if block.before is not None and block.before.is_free:
            self.withdraw(block.before)
            block = join(block.before, block)
        if block.after is not None and block.after.is_free:
            self.withdraw(block.after)
            block = join(block, block.after)
        self.put(block)


def join(left: Block, right: Block) -> Block:
    """Join two neighbours: the left one grows."""
    left.num_bytes += right.num_bytes
    left.after = right.after
    if right.after is not None:
        right.after.before = left
    return left


class Allocator:
    """The allocator, empty at first, as it is after some of a sequence of allocations and frees.

    An event is (key, bytes) for an allocation or (key, -bytes) for a free.
    """

    def __init__(
        self, dispensable_bytes: Mapping[int, int] | None = None, refused: set[tuple[int, int]] | None = None
    ) -> None:
        self.dispensable_bytes = dispensable_bytes or {}
        """By key, what an allocation can do without where it is refused: it is asked for again with so much less."""
        self.refused = refused
        """Bytes of such allocations, and what they did without: from then on alike ones ask for less at once, and for all
        only where that is refused, as cuDNN's kernel that worked for a shape is remembered by PyTorch (`benchmark_cache` in
        `aten/src/ATen/native/cudnn/Conv_v8.cpp`). None: each asks for all first."""
        self._pools = Pool(least_rest_bytes=ALIGNMENT_BYTES), Pool(least_rest_bytes=SMALL_REQUEST_BYTES + 1)
        """For small and for large requests."""
        self._in_use: dict[int, tuple[int, Block]] = {}
        """By key: the number of the pool, and the block."""
        self._reserved_bytes = self._next_address = 0
        self.peak_bytes = 0
        """The most bytes that were reserved."""

    def replay(
        self, events: Sequence[tuple[int, int]], start: int, *, limit_bytes: int | None, gives_back: bool = True
    ) -> int:
        """Do the events from `start` on; returns the number of the first that does not fit under the limit, or of all.

        At its limit PyTorch gives all cached segments back that are free as a whole, and tries once more: unless it
        is to stop before it does.
        """
        pools, in_use = self._pools, self._in_use
        for number in range(start, len(events)):
            key, num_bytes = events[number]
            if num_bytes <= 0:
                which, freed = in_use.pop(key)
                pools[which].release(freed)
                continue
            if gives_back and key in self.dispensable_bytes:
                taken = self._take_what_will_do(num_bytes, self.dispensable_bytes[key], limit_bytes)
            else:
                taken = self._take(num_bytes, limit_bytes, gives_back=gives_back)
            if taken is None:
                return number
            in_use[key] = taken
        return len(events)

    def _take_what_will_do(
        self, num_bytes: int, dispensable_bytes: int, limit_bytes: int | None
    ) -> tuple[int, Block] | None:
        """All bytes, or what is left without those that can be done without."""
        kind, least_bytes = (num_bytes, dispensable_bytes), num_bytes - dispensable_bytes
        was_refused = self.refused is not None and kind in self.refused
        for wanted in (least_bytes, num_bytes) if was_refused else (num_bytes, least_bytes):
            if (taken := self._take(wanted, limit_bytes, gives_back=True)) is not None:
                if self.refused is not None and wanted == least_bytes:
                    self.refused.add(kind)
                return taken
        return None

    def _take(self, num_bytes: int, limit_bytes: int | None, *, gives_back: bool) -> tuple[int, Block] | None:
        """A block and the number of its pool; None beyond the limit."""
        needed = rounded_bytes(num_bytes)
        which = 0 if needed <= SMALL_REQUEST_BYTES else 1
        block = self._pools[which].take(needed)
        if block is None:
            block = Block(address=self._next_address, num_bytes=segment_bytes(needed))
            if not self._has_room(block, limit_bytes, gives_back=gives_back):
                return None
            self._reserved_bytes += block.num_bytes
            self.peak_bytes = max(self.peak_bytes, self._reserved_bytes)
            self._next_address += block.num_bytes
        block.is_free = False
        self._pools[which].split(block, needed)
        return which, block

    def _has_room(self, segment: Block, limit_bytes: int | None, *, gives_back: bool) -> bool:
        if limit_bytes is None or self._reserved_bytes + segment.num_bytes <= limit_bytes:
            return True
        if not gives_back:
            return False
        self._reserved_bytes -= sum(pool.give_back() for pool in self._pools)
        return self._reserved_bytes + segment.num_bytes <= limit_bytes

    def copy(self) -> "Allocator":
        """Another one in the same state."""
        twin = Allocator(self.dispensable_bytes, self.refused)
        free = [block for pool in self._pools for block in pool.blocks.values()]
        twins = {block: replace(block) for block in [*free, *(block for _, block in self._in_use.values())]}
        for block in twins.values():
            block.before, block.after = block.before and twins[block.before], block.after and twins[block.after]
        for pool, other in zip(self._pools, twin._pools, strict=True):
            other.order = list(pool.order)
            other.blocks = {address: twins[block] for address, block in pool.blocks.items()}
        twin._in_use = {key: (which, twins[block]) for key, (which, block) in self._in_use.items()}
        twin._reserved_bytes, twin._next_address = self._reserved_bytes, self._next_address
        twin.peak_bytes = self.peak_bytes
        return twin


def reserved_peak_bytes(events: Sequence[tuple[int, int]]) -> int:
    """Bytes that the allocator, empty at first, has reserved after a sequence of allocations and frees.

    Segments stay cached, so the last figure is the peak.
    """
    allocator = Allocator()
    allocator.replay(events, 0, limit_bytes=None)
    return allocator.peak_bytes


def peak_of_calls(
    events: Sequence[tuple[int, int]],
    dispensable_bytes: Mapping[int, int] | None = None,
    *,
    limit_bytes: int | None,
    gives_back: bool = True,
    begun: tuple[Allocator, int] | None = None,
) -> tuple[int | None, int]:
    """The most that is reserved under a limit in a call, and in the next one, which begins with what the first learnt; None
    if one of them does not get through. Beside it the number of events that were replayed.

    `begun` is an allocator after the first so many events, which no limit that is tried changes: it is left as it is.
    """
    refused: set[tuple[int, int]] = set()
    if begun is None:
        first, start = Allocator(dispensable_bytes, refused), 0
    else:
        first, start = begun[0].copy(), begun[1]
        first.refused = refused
    reached = first.replay(events, start, limit_bytes=limit_bytes, gives_back=gives_back)
    num_replayed = reached - start
    if reached < len(events):
        return None, num_replayed
    if not refused:  # then the next one is no other
        return first.peak_bytes, num_replayed
    later = Allocator(dispensable_bytes, refused)
    reached = later.replay(events, 0, limit_bytes=limit_bytes, gives_back=gives_back)
    is_through = reached == len(events)
    return max(first.peak_bytes, later.peak_bytes) if is_through else None, num_replayed + reached


def reserved_under_limits(
    events: Sequence[tuple[int, int]], dispensable_bytes: Mapping[int, int] | None = None
) -> tuple[int, ...]:
    """What the allocator reserves, ascending: under a limit the largest of these that it allows, and the first under the
    lowest limit that a call and the next one get through.

    The lowest limit is found to `TOLERANCE_FRACTION` or a large segment's rounding, and of steps between a known one and the
    `next_lower` limit none. What an allocation can do without (`Allocator`) is asked for all the same as long as there is room; what lies
    beside it then may need more elsewhere.
    """
    alike = Allocator(dispensable_bytes)
    least = most_in_use_bytes(events, alike.dispensable_bytes) - 1
    # Until it reserves more than the least, every limit is alike; of a tiled decode that is nearly all.
    start = alike.replay(events, 0, limit_bytes=least, gives_back=False)

    def peak_bytes(limit_bytes: int | None) -> int | None:
        return peak_of_calls(events, dispensable_bytes, limit_bytes=limit_bytes, begun=(alike, start))[0]

    most = peak_bytes(None)
    assert most is not None, "without a limit everything fits"
    steps = {most}
    lowest = most
    while lowest - least > max(LARGE_SEGMENT_ROUNDING_BYTES, TOLERANCE_FRACTION * lowest):
        tried = (least + lowest) // 2
        found = peak_bytes(tried)
        if found is None:
            least = tried
        else:
            lowest = found
            steps.add(found)
    # From no limit downwards, each time to just below what was reserved: every limit in between does the same.
    limit = most
    while (limit := next_lower(limit, len(events))) > lowest:
        found = peak_bytes(limit)
        if found is not None:
            steps.add(found)
            limit = found
    return tuple(sorted(step for step in steps if step >= lowest))


def cached_within(cached_bytes: Iterable[int], room_bytes: float) -> int:
    """Of what more the allocator reserves under different limits (`reserved_under_limits`), what there is room for."""
    return max((cached for cached in cached_bytes if cached <= room_bytes), default=0)


def next_lower(limit_bytes: int, num_events: int) -> int:
    """The limit that is tried after one, of a call with so many events."""
    return limit_bytes - max(1, int(TOLERANCE_FRACTION * max(1.0, num_events / LONG_CALL) * limit_bytes))


def most_in_use_bytes(events: Iterable[tuple[int, int]], dispensable_bytes: Mapping[int, int]) -> int:
    """The most that all live requests take together without what they can do without: no limit below is enough."""
    in_use = most = 0
    sizes: dict[int, int] = {}
    for key, num_bytes in events:
        if num_bytes > 0:
            sizes[key] = rounded_bytes(num_bytes - dispensable_bytes.get(key, 0))
            in_use += sizes[key]
            most = max(most, in_use)
        else:
            in_use -= sizes.pop(key)
    return most
