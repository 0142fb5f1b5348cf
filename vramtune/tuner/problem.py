"""The planning problem: a profile reduced to the numbers that search and simulator work on.

A `Unit` is what one row of a plan decides on: the weights of a component, or of those of its methods that
share weights (a VAE's encoder and decoder are two). Its groups stand in keep order.
"""

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from vramtune.layout import (
    SMALL_REQUEST_BYTES,
    SMALL_SEGMENT_BYTES,
    STAGING_SLOTS,
    kept_bytes,
    ring_bytes,
    round_up,
    small_pieces,
    staging_slot_bytes,
    taken_bytes,
)
from vramtune.schema import (
    CERTAIN,
    Activity,
    Component,
    Device,
    PlannedStage,
    Profile,
    SmallTensors,
    Spread,
    Stage,
    WeightGroup,
)

DEFAULT_SLOTS = 3
LOAD_OPERATIONS = 2
"""Host time of asking for a copy that stays, in eager operations: the copy, an event of its end."""
ARRIVAL_OPERATIONS = 3
"""The same when its group's turn comes: a wait between two events."""
STREAM_OPERATIONS = 7
"""The same of a group that is streamed: all that, a wait for what it overwrites, an event when that may happen to it. On a
CPU it is 106 microseconds (`benchmarks/host_overhead.py`), where an operation takes some 20."""
CALL_OPERATIONS = 5
"""Host time of what is done around each call of a component: events, the root's arrival."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Weights that are planned together; `groups` in keep order, the root first."""

    component: str
    methods: tuple[str, ...]
    groups: tuple[WeightGroup, ...]
    sizes: tuple[int, ...]
    """Bytes by group."""
    prefix: tuple[int, ...]
    """`prefix[k]`: bytes of the first k groups."""
    largest: tuple[int, ...]
    """`largest[k]`: bytes of the largest group that is absent when k are kept."""
    least_kept: int
    """Groups to keep while active such that the fewest bytes are needed: the root and oversize leaves."""
    file_bytes: tuple[int, ...] = ()
    """By group, what of it lies in files."""
    least_idle: int = 0
    """Groups to keep while idle: none. Where the component is excluded from offload, both are all groups."""
    takes_segments: bool = False
    """Whether its memory is counted in whole segments of PyTorch's CUDA allocator."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all groups."""
        return self.prefix[-1]

    @property
    def is_excluded(self) -> bool:
        """Whether its component is excluded from offload, so that nothing is left to decide."""
        return self.least_idle == len(self.groups)

    def ring_bytes(self, kept: int, num_slots: int) -> int:
        """Bytes of the slots when `kept` groups are kept while the unit runs."""
        absent_bytes = self.prefix[-1] - self.prefix[kept]
        return ring_bytes(num_slots, largest_absent_bytes=self.largest[kept], absent_bytes=absent_bytes)

    def slot_bytes(self, kept: int, num_slots: int) -> int:
        """What those slots take on the device."""
        num_bytes = self.ring_bytes(kept, num_slots)
        return taken_bytes(num_bytes) if self.takes_segments else num_bytes

    def kept_bytes(self, kept: tuple[int, ...]) -> tuple[int, ...]:
        """What its groups take on the device, by stage, when so many are kept in each."""
        if self.takes_segments:
            return kept_bytes(self.sizes, kept, is_root_apart=bool(self.methods))
        return tuple(self.prefix[count] for count in kept)

    def small_pieces(self, kept: tuple[int, ...], s: int) -> list[int]:
        """Bytes of those pieces of them in a stage that share a segment with other small tensors."""
        if not self.takes_segments:
            return []
        return small_pieces(self.sizes, kept, is_root_apart=bool(self.methods), count=kept[s])


class PosedVisit(NamedTuple):
    """A visit of a group: what the GPU computes with it, and what the host takes to issue that."""

    unit: int
    group: int
    """Rank in keep order. The root's, 0, begins a call of a component."""
    gpu_seconds: float
    host_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StageProblem:
    """One stage, ready to be simulated."""

    name: str
    num_iterations: int
    calls: tuple[str, ...]
    """What is called in it: `transformer`, `vae.decode`."""
    active: tuple[int, ...]
    """Indices of the units that run in it."""
    visits: tuple["PosedVisit", ...]
    """One iteration in execution order."""
    num_visits: tuple[float, ...]
    """By unit: mean visits of a byte of its weights in one iteration (0 if it is not active)."""
    streamed_bytes: tuple[tuple[int, ...], ...]
    """By unit and number of groups kept: what is copied of the others in one iteration."""
    compute_seconds: float
    """One iteration, the pipeline's own work included."""
    pipeline_seconds: float
    activation_bytes: int
    """The highest activations, with what the pipeline itself holds."""
    arenas: tuple[int, ...]
    """Bytes of the segments that they are taken from."""
    cached_bytes: tuple[int, ...]
    """What PyTorch's allocator reserves beyond them, ascending: as much of it as there is room for."""
    small_bytes: int
    """What the pipeline itself holds, where that is all small tensors: a segment is planned for them..."""
    small_tensors: SmallTensors
    """...though they, and small pieces of weights, find room in the activations' own."""
    overhead_bytes: int
    """On the device besides the units: activations, workspaces, context, and the problem's `unused_bytes`."""
    spread: Spread = CERTAIN
    """Of its compute seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Units and stages of a profile on its device."""

    device: Device
    units: tuple[Unit, ...]
    stages: tuple[StageProblem, ...]
    active_stages: tuple[tuple[int, ...], ...]
    """By unit: indices of the stages in which it runs."""
    excluded: dict[str, int]
    """Components excluded from offload: what each owns beyond its units, in bytes. It is on the device all the same,
    in every stage, since the whole module is."""
    idle_host_bytes: int = 0
    """On the host besides the units' groups: what the call does not use, and what a permission keeps beside them."""
    ram_bytes: int | None = None
    """Limit of what weights take of the host; None: no limit."""
    lockable_bytes: int | None = None
    """Limit of what of them may be page-locked; None: no limit."""
    finer: "Problem | None" = None
    """The same in the finer groups of the components, where any has them."""

    @property
    def grains(self) -> "tuple[Problem, ...]":
        """The problem, and the same in finer groups where there are any."""
        return (self,) if self.finer is None else (self, self.finer)

    @property
    def is_read_anew(self) -> bool:
        """Whether weights that stay in files are read from storage at each visit: not all of them fit the host's memory."""
        cache_bytes = self.ram_bytes if self.device.ram_bytes is None else self.device.ram_bytes
        return cache_bytes is not None and sum(sum(unit.file_bytes) for unit in self.units) > cache_bytes

    def staging_seconds(self, u: int, group: int) -> float:
        """What the host takes to copy a group into the slots."""
        return self.units[u].sizes[group] / self.device.staging_bytes_per_second

    def reading_seconds(self, u: int, group: int, *, is_first: bool = False) -> float:
        """What it takes to read a group's files ahead of that: from storage, or to map in what lies in page cache.

        `is_first`: for the first time in a stage. What was mapped in is let go after the stage.
        """
        file_bytes = self.units[u].file_bytes[group]
        if self.is_read_anew:
            return file_bytes / self.device.storage_bytes_per_second
        cached = self.device.page_cache_bytes_per_second
        return file_bytes / cached if is_first and cached is not None else 0.0

    @property
    def staging_slot_bytes(self) -> int:
        """Bytes of one of the slots through which groups in ordinary memory are staged."""
        largest_bytes = max((size for unit in self.units for size in unit.sizes), default=0)
        return staging_slot_bytes(largest_bytes, self.lockable_bytes)

    @property
    def staging_bytes(self) -> int:
        """Bytes of all these slots."""
        return STAGING_SLOTS * self.staging_slot_bytes

    @property
    def unused_bytes(self) -> int:
        """What all excluded components own beyond their units."""
        return sum(self.excluded.values())

    @property
    def fixed_bytes(self) -> int:
        """The CUDA context and the libraries' workspaces."""
        return self.device.context_bytes + self.device.workspace_bytes

    @property
    def movable(self) -> tuple[int, ...]:
        """Indices of the units for which there is something to decide."""
        return tuple(u for u, unit in enumerate(self.units) if not unit.is_excluded)

    @property
    def operation_seconds(self) -> float:
        """What the host takes to issue an eager operation."""
        return self.device.times_predicted * self.device.operation_seconds

    @property
    def copy_bytes_per_second(self) -> float:
        """Rate of copies that run beside kernels."""
        return self.device.pinned_copy_bytes_per_second * self.device.overlap_fraction


def pose(profile: Profile, permissions: tuple[str, ...] = ()) -> Problem:
    """The problem that a profile poses under the given permissions."""
    finer = profile.finer
    return replace(_pose(profile, permissions), finer=None if finer is None else _pose(finer, permissions))


def _pose(profile: Profile, permissions: tuple[str, ...]) -> Problem:
    plain, profile = profile, profile.under(permissions)
    stages = profile.stages
    units: list[Unit] = []
    rank: dict[tuple[str, str], tuple[int, list[int]]] = {}  # (component, method) -> unit, rank by group
    for component in profile.components:
        for methods, is_only in _methods_sharing_weights(component, stages):
            order = keep_order(component, _seconds_by_group(component, methods, stages))
            ranks = [-1] * len(component.groups)
            for position, group in enumerate(order):
                ranks[group] = position
            rank.update({(component.name, method): (len(units), ranks) for method in methods})
            groups = tuple(component.groups[group] for group in order)
            unit = make_unit(component.name, () if is_only else methods, groups)
            unit = replace(unit, takes_segments=profile.device.takes_segments)
            units.append(_always_whole(unit) if component.name in profile.excluded else unit)
    excluded = {c.name: _unused_bytes(c, units) for c in profile.components if c.name in profile.excluded}
    if profile.device.takes_segments:
        excluded = {name: taken_bytes(num_bytes) for name, num_bytes in excluded.items()}
    unused = sum(excluded.values())
    posed = tuple(_stage_problem(profile, stage, units, rank, unused) for stage in stages)
    return Problem(
        device=profile.device,
        units=tuple(units),
        stages=posed,
        active_stages=tuple(tuple(s for s, stage in enumerate(posed) if u in stage.active) for u in range(len(units))),
        excluded=excluded,
        idle_host_bytes=_idle_host_bytes(plain, profile, units),
    )


def planned_stages(problem: Problem) -> tuple[PlannedStage, ...]:
    """The stages as a plan carries them; its placements are the problem's units."""
    return tuple(
        PlannedStage(
            name=stage.name,
            num_iterations=stage.num_iterations,
            calls=stage.calls,
            visits=tuple((visit.unit, visit.group) for visit in stage.visits),
            arenas=stage.arenas,
        )
        for stage in problem.stages
    )


def make_unit(component: str, methods: tuple[str, ...], groups: tuple[WeightGroup, ...]) -> Unit:
    """A unit of groups in keep order."""
    sizes = tuple(group.weight_bytes for group in groups)
    prefix = tuple(accumulate(sizes, initial=0))
    largest = tuple(reversed(list(accumulate(reversed(sizes), max, initial=0))))
    needed = [
        prefix[k] + ring_bytes(DEFAULT_SLOTS, largest_absent_bytes=largest[k], absent_bytes=prefix[-1] - prefix[k])
        for k in range(len(prefix))
    ]
    least_kept = min(range(1, len(prefix)), key=lambda k: (needed[k], k))
    return Unit(
        component=component,
        methods=methods,
        groups=groups,
        sizes=sizes,
        prefix=prefix,
        largest=largest,
        least_kept=least_kept,
        file_bytes=tuple(group.file_bytes for group in groups),
    )


def _always_whole(unit: Unit) -> Unit:
    """The unit as it must be where its component is excluded from offload."""
    return replace(unit, least_kept=len(unit.groups), least_idle=len(unit.groups))


def _unused_bytes(component: Component, units: list[Unit]) -> int:
    """What a component owns beyond its units; a root that several of them share counts once."""
    return component.weights.allocated_bytes - sum(group.weight_bytes for group in _planned_groups(component, units))


def _planned_groups(component: Component, units: list[Unit]) -> set[WeightGroup]:
    return {group for unit in units if unit.component == component.name for group in unit.groups}


def _idle_host_bytes(plain: Profile, profile: Profile, units: list[Unit]) -> int:
    """What stays on the host all the time: unused weights, and those that a permission keeps as they were."""
    unused = 0
    for component in (c for c in profile.components if c.name not in profile.excluded):
        used_file_bytes = sum(group.file_bytes for group in _planned_groups(component, units))
        unused += _unused_bytes(component, units) - max(component.file_bytes - used_file_bytes, 0)
    before = zip(plain.components, profile.components, strict=True)
    return unused + sum(was.weights.allocated_bytes - was.file_bytes for was, now in before if was != now)


def keep_order(component: Component, seconds: dict[int, float]) -> list[int]:
    """Order in which a component's groups are kept, of those in `seconds` (compute seconds by group).

    The root comes first, then oversize leaves: those that cost fewer bytes kept than as the measure of the
    slots. The others follow such that what is *not* kept is spread over the time of an iteration as evenly as
    can be, whatever the number: each next group is the one with the most bytes to copy around it, where bytes
    at a distance of d seconds count 1 / d (a greedy thinning; time is circular, as the iterations are).
    """
    names = sorted(group for group in seconds if group)
    if not names:
        return [0]
    sizes = np.array([component.groups[group].weight_bytes for group in names], dtype=float)
    spans = np.array([seconds[group] for group in names])
    share = sizes / max(sizes.sum(), 1.0)
    spans = spans / spans.sum() if spans.sum() > 0 else np.full(len(names), 1 / len(names))
    middle = np.cumsum(spans) - spans / 2
    distance = np.abs(middle[:, None] - middle[None, :])
    nearness = 1 / (np.minimum(distance, 1 - distance) + 0.5 / len(names))
    crowding = nearness @ share
    oversize = np.argsort(-sizes, kind="stable")[: _num_oversize(sorted(map(int, sizes), reverse=True))]
    order = [int(index) for index in oversize]
    absent = np.ones(len(names), dtype=bool)
    for index in order:
        absent[index] = False
        crowding -= nearness[:, index] * share[index]
    while len(order) < len(names):
        # rounded, so that neither names nor the scale of bytes decide between equals
        index = int(np.argmax(np.where(absent, np.round(crowding, 9), -np.inf)))
        order.append(index)
        absent[index] = False
        crowding -= nearness[:, index] * share[index]
    return [0, *(names[index] for index in order)]


def _num_oversize(sizes: list[int]) -> int:
    """How many of the largest groups need fewer bytes kept than streamed; sizes in falling order."""
    kept, rest, needed = 0, sum(sizes), []
    for size in [*sizes, 0]:
        needed.append(kept + ring_bytes(DEFAULT_SLOTS, largest_absent_bytes=size, absent_bytes=rest))
        kept, rest = kept + size, rest - size
    return needed.index(min(needed))


def _methods_sharing_weights(component: Component, stages: tuple[Stage, ...]) -> list[tuple[tuple[str, ...], bool]]:
    """Sets of methods that use common groups (the root aside), and whether there is only one such set."""
    classes: list[tuple[list[str], set[int]]] = []
    for activity in _activities(component.name, stages):
        methods, used = [activity.method], _groups_of(component, activity) - {0}
        for other in [other for other in classes if other[1] & used or activity.method in other[0]]:
            classes.remove(other)
            methods, used = [*other[0], *methods], other[1] | used
        classes.append((methods, used))
    return [(tuple(dict.fromkeys(methods)), len(classes) == 1) for methods, _ in classes]


def _activities(component: str, stages: tuple[Stage, ...]) -> list[Activity]:
    return [activity for stage in stages for activity in stage.activities if activity.component == component]


def _groups_of(component: Component, activity: Activity) -> set[int]:
    return {component.layers[segment.layer].group for segment in activity.segments}


def _seconds_by_group(component: Component, methods: tuple[str, ...], stages: tuple[Stage, ...]) -> dict[int, float]:
    """Compute seconds by group over the longest activity of each method, root included."""
    seconds: dict[int, float] = {0: 0.0}
    for activity in _activities(component.name, stages):
        if activity.method in methods:
            own: dict[int, float] = {}
            for group, span in group_visits(component, activity):
                own[group] = own.get(group, 0.0) + span
            for group, span in own.items():
                seconds[group] = max(seconds.get(group, 0.0), span)
    return seconds


def group_visits(component: Component, activity: Activity) -> list[tuple[int, float]]:
    """One call as (group, seconds) in execution order; segments of the root, or of a group whose weights are gone, count
    with the group before."""
    groups = [layer.group if component.groups[layer.group].weight_bytes else 0 for layer in component.layers]
    visits: list[tuple[int, float]] = []
    last, total = 0, 0.0
    for segment in activity.segments:
        group, seconds = groups[segment.layer], segment.layer_seconds + segment.after_seconds
        if group in (0, last):
            total += seconds
        else:
            visits.append((last, total))
            last, total = group, seconds
    return [*visits, (last, total)]


def _stage_problem(
    profile: Profile,
    stage: Stage,
    units: list[Unit],
    rank: dict[tuple[str, str], tuple[int, list[int]]],
    unused_bytes: int,
) -> StageProblem:
    visits: list[PosedVisit] = []
    for activity in stage.activities:
        unit, ranks = rank[activity.component, activity.method]
        on_gpu, on_host = activity.gpu_fraction, activity.host_fraction
        call = group_visits(profile.component(activity.component), activity)
        posed = [PosedVisit(unit, ranks[group], on_gpu * seconds, on_host * seconds) for group, seconds in call]
        visits += posed * activity.num_calls
    carried = [0.0] * len(units)
    for (unit, group), count in _count_runs(visits).items():
        carried[unit] += count * units[unit].sizes[group]
    pipeline_bytes, small_bytes = stage.pipeline_bytes, 0
    if profile.device.takes_segments:
        small_bytes = pipeline_bytes if pipeline_bytes <= SMALL_REQUEST_BYTES else 0
        pipeline_bytes = round_up(pipeline_bytes, SMALL_SEGMENT_BYTES)
    activation_bytes = stage.planned_activation_bytes + pipeline_bytes
    fixed_bytes = profile.device.workspace_bytes + profile.device.context_bytes
    return StageProblem(
        name=stage.name,
        num_iterations=stage.num_iterations,
        calls=stage.calls,
        active=tuple(dict.fromkeys(visit.unit for visit in visits)),
        visits=tuple(visits),
        num_visits=tuple(
            total / unit.total_bytes if unit.total_bytes else 0.0 for total, unit in zip(carried, units, strict=True)
        ),
        streamed_bytes=tuple(_streamed_bytes(visits, u, unit) for u, unit in enumerate(units)),
        compute_seconds=stage.seconds,
        pipeline_seconds=stage.pipeline_seconds,
        activation_bytes=activation_bytes,
        arenas=() if stage.in_arenas is None else stage.in_arenas.arenas,
        cached_bytes=stage.cached_bytes,
        small_bytes=small_bytes,
        small_tensors=min((a.small_tensors for a in stage.activities), key=lambda small: small.free_bytes),
        overhead_bytes=activation_bytes + fixed_bytes + unused_bytes,
        spread=stage.spread,
    )


def _streamed_bytes(visits: list[PosedVisit], u: int, unit: Unit) -> tuple[int, ...]:
    """`[k]`: bytes of all visits of a unit's groups from the k-th on."""
    carried = [0] * len(unit.sizes)
    for visit in visits:
        if visit.unit == u:
            carried[visit.group] += unit.sizes[visit.group]
    return tuple(reversed(list(accumulate(reversed(carried), initial=0))))


def _count_runs(visits: list[PosedVisit]) -> dict[tuple[int, int], int]:
    """Visits by (unit, group); the root counts once, since it stays."""
    counts: dict[tuple[int, int], int] = {}
    for unit, group, *_ in visits:
        counts[unit, group] = counts.get((unit, group), 0) + 1 if group else 1
    return counts
