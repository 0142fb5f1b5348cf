"""Which free segments make a call's activations take least of the device.

PyTorch's caching allocator makes each large tensor for which no cached block is large enough a segment, and later ones do
not fill it: of a denoiser's, twice as much may be reserved as is ever in use. An *arena* is a segment that is there, free,
before a call's tensors are asked for; these are taken from it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations_with_replacement

from vramtune.caching_allocator import TOLERANCE_FRACTION, most_in_use_bytes, peak_of_calls
from vramtune.layout import LARGE_SEGMENT_ROUNDING_BYTES, MEDIUM_REQUEST_BYTES, round_up, rounded_bytes

PERCENTS = (*range(100, 125, 5), *range(95, 0, -5))
"""Of what is in use at the most: sizes that are tried..."""
NUM_LIVE_SIZES = 24
"""...beside so many of what is in use together most often."""
LIKELIEST = 1.1
"""Arenas with so many times as much together as is in use at the most are tried first."""
MOST_REPLAYED = 1_500_000
"""Events, in all tries: a second."""
ARENA = -1
"""The key of the first arena among allocations; others have those below."""

Events = tuple[tuple[int, int], ...]
"""As the allocator has them: (key, bytes) for an allocation, (key, -bytes) for a free."""


@lru_cache(maxsize=32)  # a ranking prices one call on dozens of GPUs, whose workspaces are of two sizes
def best_arenas(
    before: Events, events: Events, most_bytes: int, *, dispensable: tuple[tuple[int, int], ...] = (), gives_back: bool
) -> tuple[tuple[int, ...], int] | None:
    """Bytes of one or two arenas between `before` and `events` with which the allocator reserves least, and how much it does
    then; None if none are found that make it less than `most_bytes`.

    With `gives_back`, what is reserved is the lowest limit that is found, as in `reserved_under_limits`; `dispensable` are the
    items of its `dispensable_bytes`.
    """
    dispensable_bytes = dict(dispensable)
    best: tuple[tuple[int, ...], int] | None = None
    limit_bytes, num_replayed = most_bytes, 0
    least_bytes = most_in_use_bytes(events, dispensable_bytes)
    for arenas in tried_arenas(events, least_bytes, dispensable_bytes):
        if num_replayed >= MOST_REPLAYED:
            break
        all_events = [*before, *arena_events(arenas), *events]
        while True:
            step_bytes = max(LARGE_SEGMENT_ROUNDING_BYTES, int(TOLERANCE_FRACTION * limit_bytes) if gives_back else 0)
            if limit_bytes - step_bytes < least_bytes:
                return best
            peak_bytes, reached = peak_of_calls(
                all_events, dispensable_bytes, limit_bytes=limit_bytes - step_bytes, gives_back=gives_back
            )
            num_replayed += reached
            if peak_bytes is None:
                break
            limit_bytes = peak_bytes
            best = arenas, limit_bytes
    return best


def arena_events(arenas: Sequence[int]) -> list[tuple[int, int]]:
    """Allocations after which segments of so many bytes are there, and free."""
    taken = [(ARENA - number, num_bytes) for number, num_bytes in enumerate(arenas)]
    return [*taken, *((key, -num_bytes) for key, num_bytes in taken)]


def tried_arenas(events: Events, most_bytes: int, dispensable_bytes: Mapping[int, int]) -> Iterator[tuple[int, ...]]:
    """Shares of what is in use at the most, alone and in pairs, then the same with sizes of what is in use together."""
    shares = [most_bytes * percent // 100 for percent in PERCENTS]
    seen: set[tuple[int, ...]] = set()
    for sizes in (shares, [*shares, *_live_sizes(events, dispensable_bytes)]):
        whole = dict.fromkeys(size // LARGE_SEGMENT_ROUNDING_BYTES * LARGE_SEGMENT_ROUNDING_BYTES for size in sizes)
        large = [size for size in whole if size >= MEDIUM_REQUEST_BYTES]  # smaller ones would share a segment
        ways = [*((size,) for size in large), *combinations_with_replacement(sorted(large, reverse=True), 2)]
        likeliest = sorted(ways, key=lambda way: abs(sum(way) - LIKELIEST * most_bytes))
        yield from (way for way in likeliest if way not in seen)
        seen.update(ways)


def _live_sizes(events: Events, dispensable_bytes: Mapping[int, int]) -> Iterator[int]:
    """Bytes that are in use together after an allocation, rounded up, those first that are so most often."""
    in_use = 0
    sizes: dict[int, int] = {}
    times: Counter[int] = Counter()
    for key, num_bytes in events:
        if num_bytes > 0:
            sizes[key] = rounded_bytes(num_bytes - dispensable_bytes.get(key, 0))
            in_use += sizes[key]
            times[round_up(in_use, LARGE_SEGMENT_ROUNDING_BYTES)] += 1
        else:
            in_use -= sizes.pop(key)
    yield from (size for size, _ in times.most_common(NUM_LIVE_SIZES))


def repeated(events: Sequence[tuple[int, int]], times: int) -> Iterator[tuple[int, int]]:
    """The same call again and again: what it does not free is freed once the next one has ended."""
    num_keys = max((key for key, _ in events), default=0) + 1
    kept: dict[int, int] = {}
    for key, num_bytes in events:
        if num_bytes > 0:
            kept[key] = num_bytes
        else:
            del kept[key]
    for start in range(0, times * num_keys, num_keys):
        yield from ((start + key, num_bytes) for key, num_bytes in events)
        if start:
            yield from ((start - num_keys + key, -num_bytes) for key, num_bytes in kept.items())
