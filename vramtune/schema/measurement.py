"""What was seen to happen: the nouns of a `Measurement`. Nothing here is an estimate."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vramtune.schema.plan import Plan
from vramtune.schema.shown import Shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredStage:
    """One stage of a measured call, in the order in which they ran."""

    name: str
    """Name as in the plan; a stage that the plan does not know is named after what ran."""
    seconds: float
    """Seconds on the device, from the stage's first operation to the next stage's (events on the compute stream)."""
    exposed_copy_seconds: float
    """Seconds of it in which the compute stream waited for copies."""
    moved_bytes: int
    """Bytes copied from host to device."""
    peak_bytes: int
    """Highest reserved bytes of PyTorch's allocator, by its own counter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement(Shown):
    """The last call of a tuned pipeline, as the device's own counters and events tell it."""

    device_name: str
    peak_bytes: int
    """Highest reserved bytes of PyTorch's allocator, plus `context_bytes` where that is known."""
    context_bytes: int | None
    """Bytes that the process holds outside PyTorch's allocator, or None where nothing tells."""
    seconds: float
    """Seconds on the device, from the call's first stage to its last operation."""
    moved_bytes: int
    """Bytes of weights copied from host to device; prompts and latents are not counted."""
    num_out_of_memory: int
    """Number of times a component's call ran out of memory and was run again with fewer groups kept."""
    stages: tuple[MeasuredStage, ...]

    def plot(self, plan: Plan, *, ax: "Axes | None" = None) -> "Axes":
        """Draw the call beside what its plan predicted."""
        from vramtune.reports.plots import draw_measured, predicted_and_measured

        return draw_measured(predicted_and_measured(self, plan=plan), ax=ax)
