"""What a pipeline costs: the nouns of a `Profile`."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Self

from vramtune.schema.figures import Bytes, Count, Index, Repeats, Seconds, Share, Tensors
from vramtune.schema.files import Saved
from vramtune.schema.machine import CERTAIN, Device, Spread
from vramtune.schema.shown import Shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Parameters or buffers, tied ones once."""

    num_bytes: Bytes = 0
    """Bytes that a copy of them moves."""
    allocated_bytes: Bytes = 0
    """Bytes on the device: each tensor rounded up to 512."""
    num_tensors: Tensors = 0

    def __add__(self, other: "Weights") -> "Weights":
        """The sum of both."""
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
    group: Index
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
    weight_bytes: Bytes
    """Bytes of the group's flat buffer, in which each tensor starts at a multiple of 512 bytes."""
    modules: tuple[str, ...]
    """Paths inside the component of the modules whose `forward` needs this group, with all that they contain; for the
    root group, of the modules whose own weights it holds, without what they contain."""
    file_bytes: Bytes = 0
    """Of `weight_bytes`, what lies in files that are mapped, or is not loaded yet: there it takes no memory of the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupChange:
    """By what a weight group differs from what it was when its plan was installed: LoRA came into it, say.

    Of a component that the pipeline did not have then, all is one group.
    """

    component: str
    group: str
    more_bytes: int
    """Bytes that came in, less those that went, in the group's flat buffer."""
    modules: tuple[str, ...]
    """Paths of its modules now, as a `WeightGroup` has them."""


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
    file_bytes: Bytes = 0
    """Of that and of the buffers, each tensor rounded up to 512 bytes, what lies in files as a group's may."""
    buffers: Weights = Weights()
    computed_bytes: Bytes = 0
    """What hooks compute from the weights when their module starts (`torch.nn.utils.weight_norm`), on the device. A plan
    has it let go when the module ends; in the stock modes it stays."""
    groups: tuple[WeightGroup, ...]
    layers: tuple[Layer, ...]
    """The layers used by the call, in execution order."""
    finer_groups: tuple[WeightGroup, ...] = ()
    """The same weights cut into smaller groups, which a plan may move instead; empty where none are smaller."""

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

    @property
    def finer(self) -> Self:
        """The component in its finer groups; itself where it has none."""
        if not self.finer_groups:
            return self
        group_of = {path: number for number, group in enumerate(self.finer_groups[1:], 1) for path in group.modules}
        layers = tuple(replace(layer, group=_innermost(layer.name, group_of)) for layer in self.layers)
        return replace(self, groups=self.finer_groups, layers=layers, finer_groups=())


def _innermost(path: str, group_of: Mapping[str, int]) -> int:
    """The group of the innermost module around a layer that has one; the root otherwise."""
    while path and path not in group_of:
        path = path.rpartition(".")[0]
    return group_of.get(path, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of one call, from the moment a layer starts until the next one does: the layer's own `forward`,
    then code of no layer."""

    layer: Index
    """Index into the component's layers."""
    layer_seconds: Seconds
    """Compute seconds of the layer's `forward`."""
    layer_activation_bytes: Bytes
    """Highest allocated bytes (no weights) during it."""
    after_seconds: Seconds = 0.0
    """Compute seconds of what follows it."""
    after_activation_bytes: Bytes = 0

    @property
    def seconds(self) -> float:
        """Compute seconds of the whole stretch."""
        return self.layer_seconds + self.after_seconds

    @property
    def activation_bytes(self) -> int:
        """Highest allocated bytes (no weights) of the whole stretch."""
        return max(self.layer_activation_bytes, self.after_activation_bytes)


def call_name(component: str, method: str) -> str:
    """A call's name as people read it: `transformer`, `vae.decode`."""
    return component if method == "forward" else f"{component}.{method}"


class InArenas(NamedTuple):
    """A call's activations where arenas are there before them: free segments of PyTorch's allocator, which it then splits."""

    arenas: tuple[Bytes, ...]
    """Bytes of each."""
    reserved_bytes: Bytes
    """What is reserved for them, the arenas included."""
    cached_bytes: tuple[Bytes, ...] = ()
    """As an `Activity` has it."""


class SmallTensors(NamedTuple):
    """Tensors of a call that are so small that PyTorch's allocator puts several into a segment."""

    peak_bytes: Bytes
    """The most of them that live at a time."""
    reserved_bytes: Bytes
    """The segments that they take by themselves."""

    @property
    def free_bytes(self) -> int:
        """What others' small tensors find room for in these."""
        return self.reserved_bytes - self.peak_bytes


NO_SMALL_TENSORS = SmallTensors(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What one component does in one iteration of a stage: `num_calls` equal calls of one method."""

    component: str
    method: str
    num_calls: Repeats
    segments: tuple[Segment, ...]
    """One call, in execution order."""
    activation_bytes: Bytes
    """Highest *reserved* bytes of one call (no weights): allocated, after the caching allocator's rounding."""
    cached_bytes: tuple[Bytes, ...] = ()
    """What the allocator reserves beyond that, ascending: as much of it as the limit allows. Of a call that is not repeated,
    whose activations are those of the lowest limit that it gets through."""
    small_tensors: SmallTensors = NO_SMALL_TENSORS
    """Those of its tensors that share segments, with others' too."""
    in_arenas: InArenas | None = None
    """The same activations in arenas; None where they take no less."""
    gpu_fraction: Share = 1.0
    """Of its seconds, how many the GPU computes; 1 unless it waits for the host..."""
    host_fraction: Share = 0.0
    """...and how many the host takes to issue the operations."""
    spread: Spread = CERTAIN
    """Of its seconds: the GPU's, or the host's where that may be the slower one."""

    @property
    def seconds(self) -> float:
        """Compute seconds of all calls in one iteration."""
        return self.num_calls * sum([s.layer_seconds + s.after_seconds for s in self.segments])  # asked for very often

    def with_more(self, num_bytes: int) -> Self:
        """The same with larger activations."""
        found = self.in_arenas
        if found is not None:
            found = found._replace(reserved_bytes=found.reserved_bytes + num_bytes)
        return replace(self, activation_bytes=self.activation_bytes + num_bytes, in_arenas=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A maximal run of the pipeline's call with one set of active components."""

    name: str
    """Name made of its calls, unique in the profile: `vae.encode`, and `unet (2)` where the same calls come again."""
    num_iterations: Count
    activities: tuple[Activity, ...]
    """In call order within one iteration."""
    pipeline_bytes: Bytes
    """What the pipeline itself holds meanwhile: latents, embeddings."""
    pipeline_seconds: Seconds
    """Seconds of the pipeline's own work per iteration: scheduler step, guidance."""

    @property
    def activation_bytes(self) -> int:
        """Highest reserved bytes of activations during the stage (no weights, nothing of the pipeline's own)."""
        return max(activity.activation_bytes for activity in self.activities)

    @property
    def in_arenas(self) -> InArenas | None:
        """The same in arenas, which a plan has where all other calls of the stage fit into the largest one of the largest call."""
        largest = max(self.activities, key=lambda activity: activity.activation_bytes)
        found, others = largest.in_arenas, (each for each in self.activities if each is not largest)
        if found is None or any(each.activation_bytes > max(found.arenas) for each in others):
            return None
        return found

    @property
    def planned_activation_bytes(self) -> int:
        """What activations take under a plan."""
        return max(map(self.planned_bytes_of, self.activities))

    def planned_bytes_of(self, activity: Activity) -> int:
        """What those of one of its activities take then."""
        found = self.in_arenas
        return activity.activation_bytes if found is None else min(activity.activation_bytes, found.reserved_bytes)

    @property
    def cached_bytes(self) -> tuple[int, ...]:
        """What the allocator reserves for them beyond that, ascending: as much of it as the limit allows."""
        found, base = self.in_arenas, self.planned_activation_bytes
        ways = [(a.activation_bytes, a.cached_bytes) for a in self.activities]
        if found is not None:
            ways = [(found.reserved_bytes, found.cached_bytes)]
        steps = {least_bytes + cached for least_bytes, all_cached in ways for cached in all_cached}
        return tuple(sorted(step - base for step in steps if step > base))

    @property
    def seconds(self) -> float:
        """Compute seconds of one iteration, the pipeline's own work included."""
        return self.pipeline_seconds + sum(activity.seconds for activity in self.activities)

    @property
    def spread(self) -> Spread:
        """Of its seconds: the mean of its activities', by what they take."""
        total = sum(activity.seconds for activity in self.activities)
        if not total:
            return CERTAIN
        return Spread(
            low=min(1.0, sum(a.seconds * a.spread.low for a in self.activities) / total),
            high=max(1.0, sum(a.seconds * a.spread.high for a in self.activities) / total),
        )

    @property
    def calls(self) -> tuple[str, ...]:
        """The different calls made in it, as `call_name` names them, in call order."""
        return tuple(dict.fromkeys(call_name(a.component, a.method) for a in self.activities))

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the active components, in call order."""
        return tuple(dict.fromkeys(activity.component for activity in self.activities))


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """The stages as they would be if the user allowed what changes the output."""

    permissions: tuple[str, ...]
    stages: tuple[Stage, ...]
    components: tuple[Component, ...] = ()
    """Those whose weights would be others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The call that was profiled, as the user gave it; values that JSON cannot hold are named by their type."""

    call_kwargs: dict[str, Scalar | list[Scalar]]
    method: str = "__call__"
    """The pipeline's method that was called."""
    model: str = ""
    """The name, folder or Hub id that was asked for; empty where a pipeline was given."""
    quantize: dict[str, str] = field(default_factory=dict)
    """How which components are taken to be quantized."""

    @property
    def is_of_method(self) -> bool:
        """Whether it is a call of a named method, not of the pipeline itself."""
        return self.method != "__call__"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile(Saved, Shown):
    """What one call of a pipeline costs on a device."""

    pipeline_class: str
    workload: Workload
    device: Device
    components: tuple[Component, ...]
    stages: tuple[Stage, ...]
    """In call order."""
    permissions: tuple[str, ...] = ("vae_tiling",)
    """What was looked for: under a permission that is missing here the call was not followed."""
    variants: tuple[Variant, ...] = ()
    """One for each set of permissions under which something would be otherwise."""
    offload_sequence: tuple[str, ...] = ()
    """The pipeline's `model_cpu_offload_seq`, which the stock modes follow."""
    excluded: tuple[str, ...] = ()
    """Components that the pipeline excludes from offload (`_exclude_from_cpu_offload`)."""
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse segments that point outside their component's layers."""
        for each in self._ways():
            num_layers = {component.name: len(component.layers) for component in each.components}
            for activity in (activity for stage in each.stages for activity in stage.activities):
                layers = {segment.layer for segment in activity.segments}
                if layers and not 0 <= min(layers) <= max(layers) < num_layers.get(activity.component, 0):
                    raise ValueError(f"{activity.component}.{activity.method}: a segment names no layer")

    def check(self) -> None:
        """Refuse what is no call of a pipeline: without stages, or of components that are not there."""
        for each in self._ways():
            names = [component.name for component in each.components]
            if len(set(names)) < len(names):
                raise ValueError("two components have one name")
            if any(not group.weight_bytes for component in each.components for group in component.groups[1:]):
                raise ValueError("a weight group of no bytes")
            if not each.stages or not all(stage.activities for stage in each.stages):
                raise ValueError("no stages, or one in which nothing runs")
            if any(activity.component not in names for stage in each.stages for activity in stage.activities):
                raise ValueError("a stage runs a component that is not there")

    def _ways(self) -> "list[Profile]":
        """The profile without its variants, and under the permissions of each."""
        return [
            replace(self, variants=()) if self.variants else self,
            *(self.under(v.permissions) for v in self.variants),
        ]

    def __repr__(self) -> str:
        """One line: all of it would be hundreds of thousands of characters."""
        calls = ", ".join(stage.name for stage in self.stages)
        return f"<Profile of {self.pipeline_class} on {self.device.name}, predicted: {calls}>"

    @property
    def components_in_call_order(self) -> tuple[Component, ...]:
        """The components by first use; those that are never called come last."""
        called = list(dict.fromkeys(name for stage in self.stages for name in stage.components))
        last = len(called)
        return tuple(sorted(self.components, key=lambda c: called.index(c.name) if c.name in called else last))

    def component(self, name: str) -> Component:
        """The component of that name."""
        return next(component for component in self.components if component.name == name)

    @property
    def finer(self) -> Self | None:
        """The profile in the finer groups of its components alone; None where no component has any."""
        finer = self.in_groups(is_finer=True)
        return None if finer == self else finer

    def in_groups(self, *, is_finer: bool) -> Self:
        """The profile in the usual groups of its components alone, or in the finer ones."""

        def of(components: tuple[Component, ...]) -> tuple[Component, ...]:
            return tuple(c.finer if is_finer else replace(c, finer_groups=()) for c in components)

        variants = tuple(replace(variant, components=of(variant.components)) for variant in self.variants)
        return replace(self, components=of(self.components), variants=variants)

    def under(self, permissions: Collection[str]) -> Self:
        """What the call costs under these permissions; itself where nothing would be otherwise."""
        variant = next((v for v in self.variants if set(v.permissions) == set(permissions)), None)
        if variant is None:
            return self
        others = {component.name: component for component in variant.components}
        return replace(
            self, components=tuple(others.get(c.name, c) for c in self.components), stages=variant.stages, variants=()
        )

    def plot(self, *, permissions: tuple[str, ...] = (), ax: "Axes | None" = None) -> "Axes":
        """Draw what each component costs, in one call made under the permissions."""
        from vramtune.reports.plots import component_costs, draw_components

        return draw_components(component_costs(self, permissions=permissions), ax=ax)
