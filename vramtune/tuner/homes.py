"""Where groups live on the host while they are not on the GPU: page-locked, in ordinary memory, or in their files.

In keep order the groups that move least come first, and any prefix of the others leaves the rest evenly spread. So one
number a unit says all: from which group on they are page-locked. The others stay where they are and are staged.
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


def locked_from(problem: Problem, resident: Sequence[int], residencies: Residencies) -> tuple[int, ...] | None:
    """By unit, from which group on they are page-locked, so that what is copied most often is; None: all of them can be.

    What lies in a file takes memory of the host only when it is page-locked; all else takes it anyway. What is left over
    is staged, for which the slots take their share first.
    """
    moving, in_files = moving_bytes(problem, resident), moving_file_bytes(problem, resident)
    lock_room = math.inf if problem.lockable_bytes is None else problem.lockable_bytes
    ram_room = (
        math.inf if problem.ram_bytes is None else problem.ram_bytes - problem.idle_host_bytes - (moving - in_files)
    )
    # what no home would make room for is not staged in vain
    if moving <= lock_room and (in_files <= ram_room or not in_files):
        return None
    lock_room, ram_room = lock_room - problem.staging_bytes, ram_room - problem.staging_bytes
    copies = [_copies(problem, u, residencies) for u in range(len(problem.units))]
    first = [len(unit.groups) for unit in problem.units]
    open_units = {u for u in range(len(first)) if first[u] > resident[u]}
    while open_units:
        u = max(open_units, key=lambda u: (copies[u][first[u] - 1], -u))
        size, file_size = (sizes[first[u] - 1] for sizes in (problem.units[u].sizes, problem.units[u].file_bytes))
        has_room = size <= lock_room and (not file_size or file_size <= ram_room)
        if has_room:
            first[u] -= 1
            lock_room, ram_room = lock_room - size, ram_room - file_size
        if not has_room or first[u] <= resident[u]:
            open_units.discard(u)
    return tuple(first)


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
