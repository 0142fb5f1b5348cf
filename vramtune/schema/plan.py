"""What should be where, when, why, and what that is predicted to cost: the nouns of a `Plan`."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from vramtune.layout import kept_bytes, ring_bytes, staging_slot_bytes, taken_bytes
from vramtune.schema.figures import Budget, Bytes, Count, Index, PerSecond, Repeats, Saving, Seconds, Total
from vramtune.schema.files import Saved
from vramtune.schema.machine import StorageSource
from vramtune.schema.profile import WeightGroup, Workload
from vramtune.schema.shown import Shown
from vramtune.units import format_bytes, format_seconds

Role = Literal["resident", "offloaded", "streamed", "idle"]
Permission = Literal["vae_tiling", "fp8_weights"]
"""What a user may allow that changes the output: the VAE works tile by tile; denoisers' weights are stored in float8, and
cast to what they were while their layer runs (diffusers' `enable_layerwise_casting`)."""
PERMISSIONS: tuple[str, ...] = get_args(Permission)


def placement_name(component: str, methods: tuple[str, ...]) -> str:
    """A placement's name as people read it: `unet`, or `vae.decode` where other methods have one of their own."""
    return ".".join((component, "+".join(methods))) if methods else component


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How many weight groups of a component are on the GPU in each stage.

    One placement covers the weights that `methods` share. `groups` stand in keep order, the root first:
    `kept[s]` of them, a prefix, are on the GPU throughout stage `s`. While the component is active, the others
    are streamed through `num_slots` slots, each as large as the largest of them.
    """

    component: str
    methods: tuple[str, ...]
    groups: tuple[WeightGroup, ...]
    active: tuple[bool, ...]
    """Whether the component runs, by stage."""
    kept: tuple[Index, ...]
    """Number of groups on the GPU, by stage."""
    num_slots: Repeats
    locked: tuple[Index, Index] | None = None
    """Groups from the first of these on and before the second, in keep order, are in page-locked host memory while they are
    not on the GPU; others, if they move, stay in ordinary memory or in their files and are staged. None: all are
    page-locked."""
    takes_segments: bool = False
    """Whether its memory is taken in whole segments, as PyTorch's CUDA allocator does, and counted so."""

    def __post_init__(self) -> None:
        """Refuse counts that no pipeline could follow."""
        if len(self.kept) != len(self.active) or any(not 0 <= k <= len(self.groups) for k in self.kept):
            raise ValueError(f"placement of {self.name!r}: {self.kept} of {len(self.groups)} groups kept")
        if any(active and k < 1 for active, k in zip(self.active, self.kept, strict=True)):
            raise ValueError(f"placement of {self.name!r}: its root group is absent while it runs")
        if self.locked is not None and not 0 <= self.locked[0] <= self.locked[1] <= len(self.groups):
            raise ValueError(f"placement of {self.name!r}: groups {self.locked} of {len(self.groups)} page-locked")
        if self.num_slots < 1:
            raise ValueError(f"placement of {self.name!r}: {self.num_slots} slots")

    @property
    def name(self) -> str:
        """The component, with its methods where others of it have a placement of their own."""
        return placement_name(self.component, self.methods)

    @property
    def num_resident(self) -> int:
        """Groups kept in every stage: only they stay on the GPU between calls."""
        return min(self.kept)

    def kept_bytes(self, stage: int) -> int:
        """Bytes kept on the GPU throughout a stage."""
        sizes = tuple(group.weight_bytes for group in self.groups)
        if self.takes_segments:
            return kept_bytes(sizes, self.kept, is_root_apart=bool(self.methods))[stage]
        return sum(sizes[: self.kept[stage]])

    def slot_bytes(self, stage: int) -> int:
        """Bytes of the ring of slots in a stage: 0 where nothing is streamed."""
        absent = [group.weight_bytes for group in self.groups[self.kept[stage] :]]
        if not (self.active[stage] and absent):
            return 0
        num_bytes = ring_bytes(self.num_slots, largest_absent_bytes=max(absent), absent_bytes=sum(absent))
        return taken_bytes(num_bytes) if self.takes_segments else num_bytes

    @property
    def locked_bytes(self) -> int:
        """Bytes of the groups that move and are page-locked."""
        moving = range(self.num_resident, len(self.groups))
        return sum(self.groups[group].weight_bytes for group in moving if self.is_locked(group))

    @property
    def staged_bytes(self) -> int:
        """Bytes of the groups that move and stay in ordinary memory."""
        return sum(group.weight_bytes for group in self.groups[self.num_resident :]) - self.locked_bytes

    def is_locked(self, group: int) -> bool:
        """Whether a group, by its place in keep order, is page-locked while it is not on the GPU."""
        return self.locked is None or self.locked[0] <= group < self.locked[1]

    def role(self, stage: int) -> Role:
        """Role of the placement in one stage."""
        if self.num_resident == len(self.groups):
            return "resident"
        if not self.active[stage]:
            return "idle"
        return "offloaded" if self.kept[stage] == len(self.groups) else "streamed"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """A stage as a plan knows it: enough to have every copy on its way before it is needed."""

    name: str
    num_iterations: Count
    calls: tuple[str, ...]
    """Calls made in it: `transformer`, `vae.decode`."""
    visits: tuple[tuple[Index, Index], ...]
    """One iteration in execution order, as pairs of indices: placement, and group of that placement."""
    arenas: tuple[Bytes, ...] = ()
    """Bytes of segments that PyTorch's allocator has, free, when the stage begins, and takes activations from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEstimate:
    """One stage of a predicted call: what is on the device, and how long all iterations take."""

    name: str
    num_iterations: Count
    kept_bytes: Bytes
    """Weights on the device throughout: those kept, also of idle components, and all that is excluded from offload."""
    slot_bytes: Bytes
    """The slots through which the other weights are streamed."""
    activation_bytes: Bytes
    """What the highest activations need, with what the pipeline itself holds."""
    fixed_bytes: Bytes
    """The CUDA context and the libraries' workspaces."""
    seconds: Seconds
    compute_seconds: Seconds
    moved_bytes: Total
    """Host to device, in a call that follows another one."""
    cached_bytes: Bytes = 0
    """What PyTorch's allocator takes for the activations beyond their need, since the budget leaves room for it."""
    shared_bytes: Bytes = 0
    """What all that takes less, as small tensors share segments, of which each has one in the plan."""

    @property
    def needed_bytes(self) -> int:
        """What a plan has room for."""
        return self.kept_bytes + self.slot_bytes + self.activation_bytes + self.fixed_bytes

    @property
    def peak_bytes(self) -> int:
        """Everything the process holds on the device at the stage's worst moment."""
        return self.needed_bytes + self.cached_bytes - self.shared_bytes

    @property
    def exposed_copy_seconds(self) -> float:
        """Seconds in which the device waits for copies."""
        return max(self.seconds - self.compute_seconds, 0.0)  # below 0 only by rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Extreme:
    """One end of what is likely: everything as fast and small as it may be, or as slow and large."""

    seconds: Seconds
    peak_bytes: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A prediction: of a steady call, unless it says otherwise. Never a measurement."""

    peak_bytes: Bytes
    """Everything the process holds on the device at its worst moment, context included."""
    seconds: Seconds
    """Seconds of a call that follows another one."""
    first_call_seconds: Seconds
    """Seconds of the first call, when nothing is on the GPU yet."""
    bound_seconds: Seconds
    """Seconds that no plan within the budget can beat, call after call, under the same model."""
    moved_bytes: Total
    """Bytes copied from host to device per steady call."""
    locked_bytes: Bytes
    """Page-locked host memory: weights, and the slots through which others are staged."""
    pageable_bytes: Bytes
    """Ordinary host memory of weights: of those that are staged, and of those that the call does not use."""
    file_bytes: Bytes = 0
    """Weights that stay in files, which the system reads when they are used: of the groups that are staged."""
    low: Extreme
    """The steady call if everything is as fast and small as is likely (`Device`'s spreads)."""
    high: Extreme
    """The steady call if everything is as slow and large as is likely."""
    is_narrow: bool = False
    """Whether no plan at all would be within the budget if everything were as large as is likely."""
    stages: tuple[StageEstimate, ...]

    @property
    def host_bytes(self) -> int:
        """Host memory that the weights take between calls and in them."""
        return self.locked_bytes + self.pageable_bytes

    @property
    def gap_fraction(self) -> float:
        """How far above the bound: 0.02 is two percent."""
        return self.seconds / self.bound_seconds - 1 if self.bound_seconds else 0.0

    @property
    def compute_seconds(self) -> float:
        """Seconds of arithmetic in one call."""
        return sum(stage.compute_seconds for stage in self.stages)

    @property
    def needed_bytes(self) -> int:
        """The smallest budget in which the plan works; the peak has what PyTorch only caches, too."""
        return max(stage.needed_bytes for stage in self.stages)


ReasonKind = Literal[
    "permission_used",
    "compute_bound",
    "copy_bound",
    "host_bound",
    "staging_bound",
    "disk_bound",
    "peak",
    "excluded",
    "not_resident",
    "all_resident",
    "more_memory",
]
FIGURES: dict[ReasonKind, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "copy_bound": ((), ("copies", "compute", "exposed")),
    "host_bound": ((), ("host", "compute", "exposed")),
    "staging_bound": (("staged",), ("staging", "compute", "exposed")),
    "disk_bound": (("read",), ("reading", "compute", "exposed")),
    "peak": (("weights", "others", "free"), ()),
    "excluded": (("weights",), ()),
    "not_resident": (("missing", "over_budget"), ("exposed",)),
    "more_memory": ((), ("one_gib", "unlimited")),
}
"""Names of the bytes and of the seconds that a reason of each kind has (a copy-bound one also `streamed` or `loaded`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a plan is as it is: one finding, in figures. Its words are `vramtune.reports.reasons`'.

    - `permission_used`: the plan uses `permission`. Seconds that it `saves`, or where nothing fits without it, the bytes
      that would do then, `smallest`.
    - `compute_bound`: copies are hidden behind compute, or there are none.
    - `copy_bound`: `stage` waits longest. Bytes `streamed` or `loaded`; seconds of its `copies`, of its `compute`, and
      those `exposed`.
    - `host_bound`: `stage` waits longest, for the host to ask for its copies. Seconds of the `host` for all it has to
      ask for, of `compute`, and those `exposed`.
    - `staging_bound`: `stage` waits longest, for weights that are not page-locked. Bytes `staged` in all its iterations;
      seconds that `staging` them takes the host, of `compute`, and those `exposed`.
    - `disk_bound`: `stage` waits longest, for weights that are read from files at each visit, because the files do not fit
      the host's memory. Bytes `read` in all its iterations; seconds of `reading` them, of `compute`, and those `exposed`.
    - `peak`: `stage` needs most memory. Bytes of `weights` and slots, of `others`, and those left `free`.
    - `excluded`: the pipeline excludes `component` from offload. Bytes of its `weights`.
    - `not_resident`: `component` is not always on the device, because of `stage`. Bytes `missing`, and by how many
      they would be `over_budget` (0 or less: they would fit); seconds `exposed` in the stages where it runs.
    - `all_resident`: everything the call uses stays on the device.
    - `more_memory`: seconds that `one_gib` more could save at the most, and `unlimited` memory.
    """

    kind: ReasonKind
    component: str | None = None
    """Name of a component, or of a placement where a component has several."""
    stage: str | None = None
    permission: str | None = None
    num_bytes: dict[str, Total] = field(default_factory=dict)
    seconds: dict[str, Saving] = field(default_factory=dict)

    def check(self) -> None:
        """Raise a `ValueError` where figures that belong to its kind are missing."""
        num_bytes, seconds = FIGURES.get(self.kind, ((), ()))
        has_copied = self.kind != "copy_bound" or {"streamed", "loaded"} & self.num_bytes.keys()
        if not has_copied or set(num_bytes) - self.num_bytes.keys() or set(seconds) - self.seconds.keys():
            raise ValueError(f"the reason {self.kind!r} lacks figures")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Saved, Shown):
    """Which weights are on the GPU when, and what that is predicted to cost."""

    pipeline_class: str
    workload: Workload
    device_name: str
    asked_bytes: Bytes
    """The budget as the user gave it."""
    budget_bytes: Budget
    """Limit of the peak: the asked budget, or what is usable on the device if that is less."""
    ram_bytes: Bytes | None = None
    """Limit of the host memory that weights take: as asked, or what there is if that is less. None: no limit is known."""
    lockable_bytes: Bytes | None = None
    """How much of that may be page-locked; None: no limit is known."""
    storage_bytes_per_second: PerSecond | None = None
    """How fast files are taken to be read again at each visit; None where they fit the host's memory, or nothing stays in one."""
    storage_source: StorageSource = "assumed"
    """Where that rate comes from."""
    stages: tuple[PlannedStage, ...]
    placements: tuple[Placement, ...]
    permissions: tuple[str, ...]
    """Permissions that the plan uses, among those that the user gave."""
    estimate: Estimate
    is_finer: bool = False
    """Whether it moves the finer groups of its profile's components."""
    reasons: tuple[Reason, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse parts that do not belong together: other stages, or visits of groups that are not there."""
        num_stages, num_groups = len(self.stages), [len(placement.groups) for placement in self.placements]
        if not num_stages or len(self.estimate.stages) != num_stages:
            raise ValueError(f"{num_stages} stages, {len(self.estimate.stages)} of them with an estimate")
        if any(len(placement.kept) != num_stages or not placement.groups for placement in self.placements):
            raise ValueError("a placement knows other stages, or no groups")
        if any(not group.weight_bytes for placement in self.placements for group in placement.groups[1:]):
            raise ValueError("a weight group of no bytes")
        for reason in self.reasons:
            reason.check()
        for stage in self.stages:
            if any(not (0 <= p < len(num_groups) and 0 <= g < num_groups[p]) for p, g in stage.visits):
                raise ValueError(f"stage {stage.name!r}: it visits a group that no placement has")

    @property
    def staging_slot_bytes(self) -> int:
        """Bytes of one of the slots through which weights in ordinary memory are staged."""
        largest_bytes = max((group.weight_bytes for p in self.placements for group in p.groups), default=0)
        return staging_slot_bytes(largest_bytes, self.lockable_bytes)

    def __repr__(self) -> str:
        """One line: all of it would be tens of thousands of characters."""
        peak, seconds = format_bytes(self.estimate.peak_bytes), format_seconds(self.estimate.seconds)
        return (
            f"<Plan for {self.pipeline_class} in {format_bytes(self.budget_bytes)} of {self.device_name}, "
            f"predicted: peak {peak}, {seconds} per call>"
        )
