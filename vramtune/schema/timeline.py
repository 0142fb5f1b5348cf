"""A predicted call moment by moment: the nouns of a `Timeline`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vramtune.schema.plan import Plan
from vramtune.schema.shown import Shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Engine = Literal["compute", "copy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One engine busy with one weight group."""

    engine: Engine
    component: str
    group: str
    stage: int
    """Index into the plan's stages."""
    iteration: int
    """Iteration of the stage, counted from 0."""
    is_kept: bool
    """Whether the group stays on the device throughout the stage; the others are streamed, copied at every visit."""
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLevel:
    """Who holds what on the device from one moment to the next."""

    start_seconds: float
    end_seconds: float
    stage: int
    """Index into the plan's stages."""
    component_bytes: dict[str, int]
    """Weights by component."""
    slot_bytes: int
    activation_bytes: int
    pipeline_bytes: int
    """What the pipeline itself holds: latents, embeddings."""
    workspace_bytes: int
    context_bytes: int
    cached_bytes: int = 0
    """What PyTorch's allocator takes for activations beyond their need, since there is room for it."""

    @property
    def held_bytes(self) -> int:
        """All of it."""
        working = self.slot_bytes + self.activation_bytes + self.cached_bytes + self.pipeline_bytes
        return sum(self.component_bytes.values()) + working + self.workspace_bytes + self.context_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline(Shown):
    """A steady call of a plan as the simulator sees it."""

    plan: Plan
    components: tuple[str, ...]
    """Names of the pipeline's components, by first use; those never called come last."""
    spans: tuple[Span, ...]
    memory: tuple[MemoryLevel, ...]

    def plot_memory(self, *, ax: "Axes | None" = None) -> "Axes":
        """Draw who holds how much of the GPU from moment to moment."""
        from vramtune.reports.plots import draw_memory, memory_over_call

        return draw_memory(memory_over_call(self), ax=ax)

    def plot_peaks(self, *, ax: "Axes | None" = None) -> "Axes":
        """Draw what is on the GPU at the peak of each stage."""
        from vramtune.reports.plots import draw_peaks, stage_peaks

        return draw_peaks(stage_peaks(self), ax=ax)

    def plot_lanes(self, *, ax: "Axes | None" = None) -> "Axes":
        """Draw compute and copies in one step of the longest stage."""
        from vramtune.reports.plots import draw_lanes, step_lanes

        return draw_lanes(step_lanes(self), ax=ax)
