"""What should be where, when, and what that is predicted to cost: the nouns of a `Plan` and of what is compared."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from vramtune.layout import ring_bytes
from vramtune.schema.files import Saved
from vramtune.schema.frames import frame_of
from vramtune.schema.profile import WeightGroup, Workload
from vramtune.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from pandas import DataFrame

Role = Literal["resident", "offloaded", "streamed", "idle"]
Engine = Literal["compute", "copy"]

PLAN_MODE = "vramtune"
"""The mode that a comparison calls the plan by."""


def placement_name(component: str, methods: tuple[str, ...]) -> str:
    """What people read: `unet`, or `vae.decode` where other methods have a placement of their own."""
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
    """By stage: whether the component runs in it."""
    kept: tuple[int, ...]
    """By stage: number of groups on the GPU."""
    num_slots: int

    def __post_init__(self) -> None:
        """Refuse counts that no pipeline could follow."""
        if len(self.kept) != len(self.active) or any(not 0 <= k <= len(self.groups) for k in self.kept):
            raise ValueError(f"placement of {self.name!r}: {self.kept} of {len(self.groups)} groups kept")
        if any(active and k < 1 for active, k in zip(self.active, self.kept, strict=True)):
            raise ValueError(f"placement of {self.name!r}: its root group is absent while it runs")
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
        return sum(group.weight_bytes for group in self.groups[: self.kept[stage]])

    def slot_bytes(self, stage: int) -> int:
        """Bytes of the ring of slots in a stage: 0 where nothing is streamed."""
        absent = [group.weight_bytes for group in self.groups[self.kept[stage] :]]
        if not (self.active[stage] and absent):
            return 0
        return ring_bytes(self.num_slots, largest_absent_bytes=max(absent), absent_bytes=sum(absent))

    def role(self, stage: int) -> Role:
        """The label a user reads for one stage."""
        if self.num_resident == len(self.groups):
            return "resident"
        if not self.active[stage]:
            return "idle"
        return "offloaded" if self.kept[stage] == len(self.groups) else "streamed"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """A stage as a plan knows it: enough to have every copy on its way before it is needed."""

    name: str
    num_iterations: int
    calls: tuple[str, ...]
    """What is called in it: `transformer`, `vae.decode`."""
    visits: tuple[tuple[int, int], ...]
    """One iteration in execution order: index into the placements, and into that placement's groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEstimate:
    """One stage of a predicted call."""

    name: str
    peak_bytes: int
    seconds: float
    compute_seconds: float
    moved_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A prediction: of a steady call, unless it says otherwise. Never a measurement."""

    peak_bytes: int
    """Everything the process holds on the device at its worst moment, context included."""
    seconds: float
    """A call that follows another one."""
    first_call_seconds: float
    """The first call, when nothing is on the GPU yet."""
    bound_seconds: float
    """What no plan within the budget can beat, call after call, under the same model."""
    moved_bytes: int
    """Host to device, per steady call."""
    stages: tuple[StageEstimate, ...]

    @property
    def gap_fraction(self) -> float:
        """How far above the bound: 0.02 is two percent."""
        return self.seconds / self.bound_seconds - 1 if self.bound_seconds else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Saved):
    """Which weights are on the GPU when, and what that is predicted to cost."""

    pipeline_class: str
    workload: Workload
    device_name: str
    asked_bytes: int
    """The budget as the user gave it."""
    budget_bytes: int
    """What the peak is held to: the asked budget, or what is usable on the device if that is less."""
    stages: tuple[PlannedStage, ...]
    placements: tuple[Placement, ...]
    permissions: tuple[str, ...]
    """Permissions that the plan uses, of those the user gave."""
    estimate: Estimate
    reasons: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line: all of it would be tens of thousands of characters."""
        peak, seconds = format_bytes(self.estimate.peak_bytes), format_seconds(self.estimate.seconds)
        return (
            f"<Plan for {self.pipeline_class} in {format_bytes(self.budget_bytes)} of {self.device_name}, "
            f"predicted: peak {peak}, {seconds} per call>"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeEstimate:
    """One way to run the pipeline, predicted: a stock diffusers mode, or vramtune's plan."""

    mode: str
    fits: bool | None
    """Under the budget; None where no budget was given."""
    peak_bytes: int
    seconds: float
    compute_seconds: float
    copied_in_bytes: int
    copied_out_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The stock modes, the plan and the bound, on the same profile and budget."""

    asked_bytes: int
    """The budget as the user gave it."""
    budget_bytes: int
    """What `fits` goes by: the asked budget, or what is usable on the device if that is less."""
    bound_seconds: float | None
    """None where no plan fits."""
    modes: tuple[ModeEstimate, ...]

    @property
    def plan(self) -> ModeEstimate | None:
        """The plan's row; None where no plan fits."""
        return next((mode for mode in self.modes if mode.mode == PLAN_MODE), None)

    @property
    def stock(self) -> tuple[ModeEstimate, ...]:
        """The rows of diffusers' own modes."""
        return tuple(mode for mode in self.modes if mode.mode != PLAN_MODE)

    def to_frame(self) -> "DataFrame":
        """One row per mode."""
        return frame_of(ModeEstimate, self.modes)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """The fastest plan at one budget."""

    budget_bytes: int
    peak_bytes: int
    seconds: float
    bound_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """Latency against VRAM, in rising order of budget, from the smallest that works."""

    points: tuple[FrontierPoint, ...]
    modes: tuple[ModeEstimate, ...]
    """The stock modes, each at the peak that it needs."""

    def to_frame(self) -> "DataFrame":
        """One row per budget."""
        return frame_of(FrontierPoint, self.points)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One engine busy with one thing."""

    engine: Engine
    component: str
    group: str
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLevel:
    """Who holds what on the device from one moment to the next."""

    start_seconds: float
    end_seconds: float
    stage: int
    """Index into the plan's stages."""
    owners: dict[str, int]
    """Bytes by owner: components, `slots`, `activations`, `pipeline`, `workspaces`, `context`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A steady call as the simulator sees it."""

    spans: tuple[Span, ...]
    memory: tuple[MemoryLevel, ...]
