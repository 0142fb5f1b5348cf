"""Which GPU runs a call: the nouns of a `Ranking`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vramtune.schema.comparison import FrontierPoint
from vramtune.schema.machine import Device
from vramtune.schema.profile import Workload
from vramtune.schema.shown import Shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedGpu:
    """One GPU and the call, predicted: the fastest plan in what it gives, and in the least that works."""

    device: Device
    budget_bytes: int
    """What is planned for: the budget, or what is usable on the GPU if that is less."""
    best: FrontierPoint | None
    """The fastest plan; None where nothing fits."""
    least: FrontierPoint | None
    """The fastest plan in the least memory that works: what it costs to give the rest to something else. None where
    nothing fits."""
    least_bytes: int
    """The smallest budget for which there is a plan."""
    permission: str | None = None
    """One that would help where nothing fits, or None."""

    @property
    def fits(self) -> bool:
        """Whether there is a plan."""
        return self.best is not None

    @property
    def seconds(self) -> float | None:
        """Of a steady call; None where nothing fits."""
        return self.best.seconds if self.best is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking(Shown):
    """GPUs for one call: those that do it in time, the fastest first; those that take longer; those that it does not fit,
    the nearest to it first."""

    pipeline_class: str
    workload: Workload
    asked_bytes: int | None
    """The budget on each GPU; None for all that it gives."""
    most_seconds: float | None
    """What a call may take; None for any time."""
    gpus: tuple[RankedGpu, ...]

    def is_in_time(self, gpu: RankedGpu) -> bool:
        """Whether a call on it is expected to take no longer than it may."""
        return gpu.seconds is not None and (self.most_seconds is None or gpu.seconds <= self.most_seconds)

    @property
    def fits(self) -> bool:
        """Whether any does it in time."""
        return any(map(self.is_in_time, self.gpus))

    def plot(self, *, ax: "Axes | None" = None) -> "Axes":
        """Draw the seconds on each GPU."""
        from vramtune.reports.plots import draw_ranking, gpu_seconds

        return draw_ranking(gpu_seconds(self), ax=ax)
