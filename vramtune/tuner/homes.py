"""Where groups live on the host while they are not on the GPU: page-locked, in ordinary memory, or in their files.

In keep order the groups that move least come first, and what any prefix leaves is evenly spread over an iteration. So a range
says which groups of a unit are page-locked: from the first one that moves most often on. Those before it move less; those
behind it are staged as often, but evenly spread, so that the host can keep up. They stay where they are.
"""

import math
from collections.abc import Mapping, Sequence

from vramtune.tuner.problem import Problem
from vramtune.tuner.schedule import Residency

Residencies = Sequence[Mapping[int, Residency]]
"""By stage: what each active unit keeps."""


def moving_bytes(problem: Problem, resident: Sequence[int]) -> int:
    """Bytes of the groups that are not on the GPU all the time."""
    return sum(unit.total_bytes - unit.prefix[count] for unit, count in zip(problem.units, resident, strict=True))


def moving_file_bytes(problem: Problem, resident: Sequence[int]) -> int:
    """What of them lies in files."""
    return sum(sum(unit.file_bytes[count:]) for unit, count in zip(problem.units, resident, strict=True))


def locked_ranges(
    problem: Problem, resident: Sequence[int], residencies: Residencies
) -> tuple[tuple[int, int], ...] | None:
    """By unit, the first page-locked group and the one behind the last, so that what is copied most often is; None: all.

    What lies in a file takes memory of the host only when it is page-locked; all else takes it anyway. What is left over
    is staged, for which the slots take their share first.
    """
    moving, in_files = moving_bytes(problem, resident), moving_file_bytes(problem, resident)
    lock_room = math.inf if problem.lockable_bytes is None else problem.lockable_bytes
    ram_room = (
        math.inf if problem.ram_bytes is None else problem.ram_bytes - problem.idle_host_bytes - (moving - in_files)
    )
    if moving <= lock_room and (in_files <= ram_room or not in_files):
        return None
    lock_room, ram_room = lock_room - problem.staging_bytes, ram_room - problem.staging_bytes
    copies = [_copies(problem, u, residencies) for u in range(len(problem.units))]
    ranges = [_empty_range(row, least) for row, least in zip(copies, resident, strict=True)]
    growing = {u: _next_group(ranges[u], len(copies[u]), resident[u]) for u in range(len(ranges))}
    while open_units := [u for u, group in growing.items() if group is not None]:
        u = max(open_units, key=lambda u: (copies[u][growing[u] or 0], -u))
        group = growing[u] or 0
        size, file_size = problem.units[u].sizes[group], problem.units[u].file_bytes[group]
        if size > lock_room or (file_size and file_size > ram_room):
            growing[u] = None
            continue
        lock_room, ram_room = lock_room - size, ram_room - file_size
        start, end = ranges[u]
        ranges[u] = (min(start, group), max(end, group + 1))
        growing[u] = _next_group(ranges[u], len(copies[u]), resident[u])
    return tuple(ranges)


def _empty_range(copies: Sequence[int], resident: int) -> tuple[int, int]:
    """No groups yet, where those that are copied most often begin."""
    moving = copies[resident:]
    start = resident + moving.index(max(moving)) if moving else len(copies)
    return start, start


def _next_group(range_: tuple[int, int], num_groups: int, resident: int) -> int | None:
    """The group by which a range grows: the one behind it, then those before it; None where it has all that move."""
    start, end = range_
    if end < num_groups:
        return end
    return start - 1 if start > resident else None


def _copies(problem: Problem, u: int, residencies: Residencies) -> list[int]:
    """How often each group of a unit is copied in a call."""
    unit, copies = problem.units[u], [0] * len(problem.units[u].groups)
    for stage, active in zip(problem.stages, residencies, strict=True):
        if (residency := active.get(u)) is None:
            continue
        carried = stage.streamed_bytes[u]
        for g in range(residency.present, len(copies)):
            if g < residency.kept:
                copies[g] += 1
            elif unit.sizes[g]:
                copies[g] += stage.num_iterations * ((carried[g] - carried[g + 1]) // unit.sizes[g])
    return copies
