"""Every noun, frozen, and how it is written to JSON and read back.

The data flows one way: a pipeline becomes a `Profile` (what each component costs), a profile and a budget
become a `Plan` (how many weight groups are on the GPU in each stage), a profile and a plan become a
`Timeline`. Bytes are ints, seconds are floats, counts start with `num_`, unknown is None. Nothing here, and
nothing that imports only this, needs torch.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self, TypeVar

import msgspec

from vramtune.errors import FileError

SCHEMA_VERSION = 1

Scalar = str | int | float | bool | None
Source = Literal["predicted", "measured"]
Role = Literal["resident", "offloaded", "streamed", "idle"]
Engine = Literal["compute", "copy"]


# ---------------------------------------------------------------------------------------------------
# What a pipeline costs


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU as the planner sees it."""

    name: str
    total_bytes: int
    usable_bytes: int
    """What this process may hold: total less the driver's own, the desktop's and other processes' share."""
    context_bytes: int
    """The CUDA context of one process: held from the first call on, outside PyTorch's counters."""
    workspace_bytes: int
    """Library workspaces (cuBLAS) that stay reserved once used."""
    pinned_copy_bytes_per_second: float
    """Host to device from page-locked memory, one large copy, GPU otherwise idle."""
    pageable_copy_bytes_per_second: float
    """Host to device from ordinary memory; blocks the host."""
    readback_bytes_per_second: float
    """Device to host into ordinary memory, as `module.to("cpu")` does; blocks the host."""
    overlap_fraction: float
    """Share of the pinned rate that remains while kernels run (0-1)."""
    copy_latency_seconds: float
    """Fixed cost of one copy."""
    flops_per_second: dict[str, float]
    """Peak dense multiply-add rate by dtype: `float32`, `float16`, `bfloat16`."""
    memory_bytes_per_second: float
    efficiency_fraction: dict[str, float]
    """Share of these two that kernels reach (0-1): of `flops_per_second` by kind of operation (`matmul`,
    `convolution`, `attention`, `pointwise`), of the bandwidth as `memory`."""
    launch_seconds: float
    """Least time of one kernel."""
    source: Source = "predicted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Parameters or buffers, tied ones once."""

    num_bytes: int = 0
    """What a copy of them moves."""
    allocated_bytes: int = 0
    """What they take on the device: each tensor rounded up to 512 bytes."""
    num_tensors: int = 0

    def __add__(self, other: "Weights") -> "Weights":
        """Both."""
        return Weights(
            num_bytes=self.num_bytes + other.num_bytes,
            allocated_bytes=self.allocated_bytes + other.allocated_bytes,
            num_tensors=self.num_tensors + other.num_tensors,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A module that owns weights itself: the finest thing that the stock modes move."""

    name: str
    parameters: Weights
    buffers: Weights = Weights()
    group: int
    """Index into the component's groups."""
    block: str | None
    """What diffusers' block-level group offload moves it with, or None: then it moves with its shell."""
    shell: str = ""
    """The module whose call that mode hooks around it: the component ("") or one that the component names."""

    @property
    def weights(self) -> Weights:
        """Parameters and buffers."""
        return self.parameters + self.buffers


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightGroup:
    """The smallest thing that vramtune moves: modules that run one after the other."""

    name: str
    weight_bytes: int
    """Of its flat buffer, in which each tensor starts at a multiple of 512 bytes."""
    modules: tuple[str, ...]
    """Paths, inside the component, of the modules whose `forward` needs this group; empty for the root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """An `nn.Module` of the pipeline and its used weights, cut into groups in execution order.

    `groups[0]` is the root group (perhaps of 0 bytes): what must be on the GPU whenever the component runs.
    """

    name: str
    class_name: str
    dtype: str
    parameters: Weights
    """Everything the module owns, used by this call or not."""
    buffers: Weights = Weights()
    groups: tuple[WeightGroup, ...]
    layers: tuple[Layer, ...]
    """The layers used by the call, in execution order."""

    def __post_init__(self) -> None:
        """Refuse layers that point outside the groups."""
        if not self.groups or any(not 0 <= layer.group < len(self.groups) for layer in self.layers):
            raise ValueError(f"component {self.name!r}: a layer belongs to no group")

    @property
    def weights(self) -> Weights:
        """Parameters and buffers."""
        return self.parameters + self.buffers

    @property
    def used_bytes(self) -> int:
        """Bytes of all groups: what the call uses of the weights."""
        return sum(group.weight_bytes for group in self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of one call, from the moment a layer starts until the next one does: the layer's own `forward`,
    then code of no layer."""

    layer: int
    """Index into the component's layers."""
    layer_seconds: float
    """Compute seconds of the layer's `forward`."""
    layer_activation_bytes: int
    """Highest allocated bytes (no weights) during it."""
    after_seconds: float = 0.0
    """The same for what follows it."""
    after_activation_bytes: int = 0

    @property
    def seconds(self) -> float:
        """Compute seconds of the whole stretch."""
        return self.layer_seconds + self.after_seconds

    @property
    def activation_bytes(self) -> int:
        """Highest allocated bytes (no weights) of the whole stretch."""
        return max(self.layer_activation_bytes, self.after_activation_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What one component does in one iteration of a stage: `num_calls` equal calls of one method."""

    component: str
    method: str
    num_calls: int
    segments: tuple[Segment, ...]
    """One call, in execution order."""
    activation_bytes: int
    """Highest *reserved* bytes of one call (no weights): allocated, after the caching allocator's rounding."""

    @property
    def seconds(self) -> float:
        """Compute seconds of all calls in one iteration."""
        return self.num_calls * sum(segment.seconds for segment in self.segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A maximal run of the pipeline's call with one set of active components."""

    name: str
    num_iterations: int
    activities: tuple[Activity, ...]
    """In call order within one iteration."""
    glue_bytes: int
    """What the pipeline itself holds meanwhile: latents, embeddings."""
    glue_seconds: float
    """Its own work per iteration: scheduler step, guidance."""

    @property
    def activation_bytes(self) -> int:
        """Highest reserved bytes of activations during the stage (no weights, no glue)."""
        return max(activity.activation_bytes for activity in self.activities)

    @property
    def seconds(self) -> float:
        """Compute seconds of one iteration, glue included."""
        return self.glue_seconds + sum(activity.seconds for activity in self.activities)

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the active components, in call order."""
        return tuple(dict.fromkeys(activity.component for activity in self.activities))


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """The stages as they would be if the user allowed something that changes the output."""

    permission: str
    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The call that was profiled, as the user gave it; values that JSON cannot hold are their repr."""

    call_kwargs: dict[str, Scalar | list[Scalar]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What one call of a pipeline costs on a device."""

    pipeline_class: str
    workload: Workload
    device: Device
    components: tuple[Component, ...]
    stages: tuple[Stage, ...]
    """In call order."""
    variants: tuple[Variant, ...] = ()
    offload_sequence: tuple[str, ...] = ()
    """The pipeline's `model_cpu_offload_seq`, which the stock modes follow."""
    excluded: tuple[str, ...] = ()
    """Its `_exclude_from_cpu_offload`."""
    source: Source = "predicted"
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse segments that point outside their component's layers."""
        num_layers = {component.name: len(component.layers) for component in self.components}
        for stages in (self.stages, *(variant.stages for variant in self.variants)):
            for activity in (activity for stage in stages for activity in stage.activities):
                if any(not 0 <= s.layer < num_layers.get(activity.component, 0) for s in activity.segments):
                    raise ValueError(f"{activity.component}.{activity.method}: a segment names no layer")

    def component(self, name: str) -> Component:
        """The component of that name."""
        return next(component for component in self.components if component.name == name)

    def stages_with(self, permissions: tuple[str, ...]) -> tuple[Stage, ...]:
        """The stages under the permissions that are used (at most one is known so far)."""
        return next((v.stages for v in self.variants if v.permission in permissions), self.stages)


# ---------------------------------------------------------------------------------------------------
# What should be where, when


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
        return ".".join((self.component, "+".join(self.methods))) if self.methods else self.component

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
        return min(self.num_slots * max(absent), sum(absent)) if self.active[stage] and absent else 0

    def role(self, stage: int) -> Role:
        """The label a user reads for one stage."""
        if self.num_resident == len(self.groups):
            return "resident"
        if not self.active[stage]:
            return "idle"
        return "offloaded" if self.kept[stage] == len(self.groups) else "streamed"


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
class Plan:
    """Which weights are on the GPU when, and what that is predicted to cost."""

    pipeline_class: str
    workload: Workload
    device_name: str
    asked_bytes: int
    """The budget as the user gave it."""
    budget_bytes: int
    """What was planned for: the asked budget, or what is usable on the device if that is less."""
    stages: tuple[str, ...]
    placements: tuple[Placement, ...]
    permissions: tuple[str, ...]
    """Permissions that the plan uses, of those the user gave."""
    estimate: Estimate
    reasons: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        Path(path).write_bytes(to_json(self))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan written by `save`; `FileError` if it is none."""
        return from_json(cls, read_file(path))


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

    budget_bytes: int
    bound_seconds: float | None
    """None where no plan fits."""
    modes: tuple[ModeEstimate, ...]


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


# ---------------------------------------------------------------------------------------------------
# JSON

Noun = TypeVar("Noun")


def to_json(noun: object) -> bytes:
    """A noun as JSON, with its kind and the schema version around it."""
    envelope = {"kind": type(noun).__name__, "schema_version": SCHEMA_VERSION, "body": noun}
    return msgspec.json.format(msgspec.json.encode(envelope), indent=1) + b"\n"


def from_json(kind: type[Noun], text: bytes | str) -> Noun:
    """The noun of that kind that `to_json` wrote; `FileError` says what else the text is."""
    try:
        envelope = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        found = msgspec.json.decode(envelope["kind"], type=str)
        version = msgspec.json.decode(envelope["schema_version"], type=int)
        body = envelope["body"]
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError) as error:
        raise FileError(
            f"Expected a vramtune {kind.__name__}; this is no file of vramtune's ({error})."
        ) from error
    if found != kind.__name__:
        raise FileError(f"Expected a vramtune {kind.__name__}; this file holds a {found}.")
    if version != SCHEMA_VERSION:
        raise FileError(
            f"Expected schema version {SCHEMA_VERSION}; this {found} has version {version}. Make it anew."
        )
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise FileError(f"This {found} is damaged: {error}.") from error


def read_file(path: str | Path) -> bytes:
    """The file's bytes; a `FileError` that names it where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FileError(f"Cannot read {str(path)!r}: {error.strerror}.") from error
