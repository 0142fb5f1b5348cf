"""What PyTorch's allocator reserves for one call, or for calls one after the other, beside cuBLAS's workspace."""

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from vramtune.caching_allocator import most_in_use_bytes, reserved_peak_bytes, reserved_under_limits
from vramtune.layout import SMALL_REQUEST_BYTES, rounded_bytes, workspace_block_bytes
from vramtune.pricing.arenas import arena_events, best_arenas, repeated
from vramtune.schema import InArenas, Reserved, SmallTensors, Trace, TracedCall

WORKSPACE = 0
"""Number of the workspace among a call's allocations, which begin at 1."""
MOST_CONVOLUTIONS = 100
"""In a call for which arenas are looked for under the lowest limit. An image's decoder has some forty."""
REPEATS = 2
"""Calls in which arenas are tried: what one returns is there until the next one has ended."""


def peak_bytes(call: TracedCall, workspace_bytes: int) -> int:
    """What is reserved beyond cuBLAS's workspace, in whose segment small activations find room."""
    if (known := call.reserved.get(workspace_bytes)) is not None:
        return known.peak_bytes
    return reserved_peak_bytes(_beside_workspace(call, workspace_bytes)) - workspace_bytes


def under_limits(call: TracedCall, workspace_bytes: int) -> tuple[int, tuple[int, ...]]:
    """The same under the lowest limit that the call gets through, and what more is reserved under others."""
    if (known := call.reserved.get(workspace_bytes)) is not None:
        return known.least_bytes, known.cached_bytes
    least, *others = _steps(tuple(_beside_workspace(call, workspace_bytes)), tuple(call.images.items()))
    return least - workspace_bytes, tuple(step - least for step in others)


def small_tensors(call: TracedCall, workspace_bytes: int) -> SmallTensors:
    """Those of the call's tensors that share segments."""
    if (known := call.reserved.get(workspace_bytes)) is not None:
        return known.small_tensors
    events = [event for event in call.allocations() if rounded_bytes(abs(event[1])) <= SMALL_REQUEST_BYTES]
    return SmallTensors(most_in_use_bytes(events, {}), reserved_peak_bytes(events))


def first_of_stage(trace: Trace, call: int) -> TracedCall | None:
    """The other call of the same component, if there is one, that comes right before a repeated one begins: it makes tables
    that are kept."""
    calls, turns = trace.calls, trace.runs[0].turns
    begin = next((number for number, turn in enumerate(turns) if turn.call == call), 0)
    before = calls[turns[begin - 1].call] if begin else None
    is_like = before is not None and (before.component, before.method) == (calls[call].component, calls[call].method)
    return before if is_like else None


def peak_in_arenas(call: TracedCall, workspace_bytes: int, *, first: TracedCall | None = None) -> InArenas | None:
    """What is reserved for calls one after the other, in the arenas that make it least; None where that is no less.

    What the first call, where it is another one, does not free lies in an arena from then on.
    """
    if call.depends_on_card:
        return None
    if (known := call.reserved.get(workspace_bytes)) is not None:
        return known.peak_in_arenas
    before = () if first is None else tuple(first.allocations())
    start = max((key for key, _ in before), default=0)
    again = ((start + key, num_bytes) for key, num_bytes in repeated([*call.allocations()], REPEATS))
    found = best_arenas(
        _workspace(workspace_bytes),
        (*before, *again),
        peak_bytes(call, workspace_bytes) + workspace_bytes,
        gives_back=False,
    )
    return None if found is None else InArenas(found[0], found[1] - workspace_bytes)


def least_in_arenas(call: TracedCall, workspace_bytes: int) -> InArenas | None:
    """The lowest limit that a single call gets through, in arenas; None where it is no lower.

    Nor for a decode frame by frame or tile by tile: of so many convolutions any that takes a little more than is known
    (flash attention's split accumulators) decides whether a large tensor still fits, and a decode that runs twice takes minutes.
    """
    if call.depends_on_card or len(call.images) > MOST_CONVOLUTIONS:
        return None
    if (known := call.reserved.get(workspace_bytes)) is not None:
        return known.least_in_arenas
    before, events = _workspace(workspace_bytes), tuple(call.allocations())
    most_bytes = under_limits(call, workspace_bytes)[0] + workspace_bytes
    found = best_arenas(before, events, most_bytes, dispensable=tuple(call.images.items()), gives_back=True)
    if found is None:
        return None
    arenas, least_bytes = found
    steps = _steps((*before, *arena_events(arenas), *events), tuple(call.images.items()))
    cached_bytes = tuple(step - least_bytes for step in steps if step > least_bytes)
    return InArenas(arenas, least_bytes - workspace_bytes, cached_bytes)


def with_reserved(trace: Trace, workspaces: Iterable[int]) -> Trace:
    """The trace, with what the allocator makes of its calls beside workspaces of these bytes: that takes longest."""

    def known(index: int, call: TracedCall) -> TracedCall:
        first = first_of_stage(trace, index)
        found = {
            size: Reserved(
                *under_limits(call, size),
                small_tensors(call, size),
                peak_in_arenas(call, size, first=first),
                least_in_arenas(call, size),
            )
            for size in sorted({*workspaces})
        }
        return replace(call, reserved={**call.reserved, **found})

    return replace(trace, calls=tuple(known(index, call) for index, call in enumerate(trace.calls)))


@lru_cache(maxsize=32)  # the variants of a call, and the stages of one, share most of its calls
def _steps(events: tuple[tuple[int, int], ...], dispensable: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    return reserved_under_limits(events, dict(dispensable))


def _beside_workspace(call: TracedCall, workspace_bytes: int) -> list[tuple[int, int]]:
    return [*_workspace(workspace_bytes), *call.allocations()]


def _workspace(workspace_bytes: int) -> tuple[tuple[int, int], ...]:
    """The workspace among allocations."""
    return ((WORKSPACE, workspace_block_bytes(workspace_bytes)),) if workspace_bytes else ()
