"""What a frontier says besides its points: what limits each plan, and what memory each stock mode asks for."""

import math
from dataclasses import dataclass
from typing import Literal

from vramtune.schema import Frontier, FrontierPoint, Profile

Limit = Literal["compute", "loads", "copy rate"]
"""`compute`: copies are hidden, or there are none. `loads`: stages wait for what they load before they run; more
room would carry it over. `copy rate`: more is streamed than can be copied meanwhile, in any plan of that budget."""

HIDDEN_FRACTION = 0.005
"""Of a call: a plan that waits no longer for copies is limited by compute, as its own reasons say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StockRow:
    """A stock mode at the memory that it needs, beside the plan for as much."""

    mode: str
    fits: bool
    """The card."""
    peak_bytes: int
    """The smallest memory that it works in: stock modes know no budget."""
    seconds: float
    plan_seconds: float | None
    """Of the fastest plan in the memory that the mode needs, or all that the card gives; None where none fits it."""


def limits(frontier: Frontier, profile: Profile) -> tuple[Limit, ...]:
    """What limits the plan at each point, by its seconds, its bound and the compute of a call."""
    ways = (profile.stages, *(variant.stages for variant in profile.variants))
    computes = [sum(stage.num_iterations * stage.seconds for stage in stages) for stages in ways]
    return tuple(_limit(point, computes) for point in frontier.points)


def _limit(point: FrontierPoint, computes: list[float]) -> Limit:
    # a bound that is all compute tells which permissions the plan uses
    compute = next((c for c in computes if math.isclose(point.bound_seconds, c)), min(computes))
    hidden = compute + HIDDEN_FRACTION * point.seconds
    if point.seconds < hidden:
        return "compute"
    return "loads" if point.bound_seconds < hidden else "copy rate"


def stock_rows(frontier: Frontier, profile: Profile) -> tuple[StockRow, ...]:
    """One row per stock mode, the one that needs least memory first."""
    rows = (
        StockRow(
            mode=mode.mode,
            fits=mode.peak_bytes <= profile.device.usable_bytes,
            peak_bytes=mode.peak_bytes,
            seconds=mode.seconds,
            plan_seconds=_seconds_within(frontier, mode.peak_bytes),
        )
        for mode in frontier.modes
    )
    return tuple(sorted(rows, key=lambda row: (row.peak_bytes, row.seconds)))


def _seconds_within(frontier: Frontier, num_bytes: int) -> float | None:
    """Of the last point that fits; points are faster the more memory they have."""
    fitting = [point.seconds for point in frontier.points if point.budget_bytes <= num_bytes]
    return fitting[-1] if fitting else None
