"""Ways to run a pipeline side by side: the nouns of a `Comparison` and of a `Frontier`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vramtune.schema.machine import Device
from vramtune.schema.plan import Estimate, Extreme, Plan
from vramtune.schema.profile import Workload
from vramtune.schema.shown import Shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLAN_MODE = "vramtune"
"""The mode that a comparison calls the plan by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeEstimate:
    """One way to run the pipeline, predicted: a stock diffusers mode, or vramtune's plan."""

    mode: str
    fits: bool | None
    """Whether the peak is within the budget, and what it takes of the host within that; None where no budget was given."""
    peak_bytes: int
    """What it gets through in: with more, PyTorch's allocator keeps more than it needs."""
    seconds: float
    compute_seconds: float
    moved_bytes: int
    """Bytes copied from host to device per call."""
    moved_back_bytes: int
    """Bytes copied from device to host per call."""
    host_bytes: int
    """What its weights take of the host's memory from the second call on; those that stay in mapped files take none."""
    low: Extreme
    """If everything is as fast and small as is likely."""
    high: Extreme
    """If everything is as slow and large as is likely, with all that PyTorch's allocator keeps where it has room."""
    is_narrow: bool = False
    """Whether it fits, and would not if everything were as large as is likely."""
    permissions: tuple[str, ...] = ()
    """Under which it is predicted: what a plan may do for them, diffusers' own methods do for a stock mode."""

    @property
    def title(self) -> str:
        """The mode, and the permissions under which it is predicted."""
        return f"{self.mode} ({', '.join(self.permissions)})" if self.permissions else self.mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(Shown):
    """The stock modes, the plan and the bound, on the same profile and budget."""

    pipeline_class: str
    workload: Workload
    device: Device
    asked_bytes: int
    """The budget as the user gave it."""
    budget_bytes: int
    """What `fits` goes by: the asked budget, or what is usable on the device if that is less."""
    plan: Plan | None
    """None where no plan fits."""
    stock: tuple[ModeEstimate, ...]
    """diffusers' own modes."""

    @property
    def permissions(self) -> tuple[str, ...]:
        """Under which all are predicted: what the plan uses, or where none fits what it might have."""
        return self.plan.permissions if self.plan else next((mode.permissions for mode in self.stock), ())

    @property
    def bound_seconds(self) -> float | None:
        """What no plan within the budget can beat; None where no plan fits."""
        return self.plan.estimate.bound_seconds if self.plan else None

    @property
    def plan_mode(self) -> ModeEstimate | None:
        """The plan as one more mode; None where no plan fits."""
        if self.plan is None:
            return None
        estimate = self.plan.estimate
        return ModeEstimate(
            mode=PLAN_MODE,
            fits=estimate.needed_bytes <= self.budget_bytes,
            peak_bytes=estimate.needed_bytes,
            seconds=estimate.seconds,
            compute_seconds=estimate.compute_seconds,
            moved_bytes=estimate.moved_bytes,
            moved_back_bytes=0,
            host_bytes=estimate.host_bytes,
            permissions=self.permissions,
            low=estimate.low,
            high=estimate.high,
            is_narrow=estimate.is_narrow,
        )

    @property
    def modes(self) -> tuple[ModeEstimate, ...]:
        """The plan, where one fits, and the stock modes."""
        return (*filter(None, (self.plan_mode,)), *self.stock)

    def plot(self, *, ax: "Axes | None" = None) -> "Axes":
        """Draw the seconds of each mode."""
        from vramtune.reports.plots import draw_modes, mode_seconds

        return draw_modes(mode_seconds(self), ax=ax)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """The fastest plan at one budget."""

    budget_bytes: int
    permissions: tuple[str, ...]
    """Permissions that the plan uses."""
    estimate: Estimate

    @property
    def seconds(self) -> float:
        """Seconds of a steady call."""
        return self.estimate.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier(Shown):
    """Latency against VRAM, in rising order of budget, from the smallest that works."""

    pipeline_class: str
    workload: Workload
    device: Device
    points: tuple[FrontierPoint, ...]
    stock: tuple[ModeEstimate, ...]
    """diffusers' own modes, each at the peak that it needs, under each set of permissions that a point uses."""

    def plot(self, *, ax: "Axes | None" = None) -> "Axes":
        """Draw seconds against memory."""
        from vramtune.reports.plots import draw_frontier, latency_frontier

        return draw_frontier(latency_frontier(self), ax=ax)
