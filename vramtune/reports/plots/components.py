"""What each component costs: weights, activations, seconds to copy."""

from dataclasses import dataclass

from matplotlib.axes import Axes

from vramtune.reports.plots.bars import HEADING_HEIGHT, Bar, Panel, draw_panels
from vramtune.reports.plots.style import Look, component_looks, plain_words, titled_axes
from vramtune.reports.rows import ComponentRow, component_rows
from vramtune.schema import Profile
from vramtune.units import format_bytes, format_seconds

HEADINGS = ("weights", "peak activations", "time to copy to the GPU")
ROW_INCHES = 0.5
TITLE_INCHES = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentsPlot:
    """What `draw_components` draws."""

    title: str
    rows: tuple[ComponentRow, ...]
    """One per component, in order of first use."""


def component_costs(profile: Profile, *, permissions: tuple[str, ...] = ()) -> ComponentsPlot:
    """Each component's weights, activations and copy seconds in one call made under the permissions."""
    return ComponentsPlot(
        title=f"{profile.pipeline_class} on {profile.device.name}:\nwhat each component costs in one call, predicted",
        rows=component_rows(profile, permissions=permissions),
    )


@plain_words
def draw_components(plot: ComponentsPlot, *, ax: Axes | None = None) -> Axes:
    """Draw it on `ax`, or on a figure of its own."""
    ax = titled_axes(plot.title, height_inches=TITLE_INCHES + ROW_INCHES * (len(plot.rows) + HEADING_HEIGHT), ax=ax)
    looks = component_looks(row.component for row in plot.rows)
    bars = [_bars(row, looks[row.component]) for row in plot.rows]
    panels = [
        Panel(heading=heading, rows=tuple((bar,) for bar in column))
        for heading, column in zip(HEADINGS, zip(*bars, strict=True), strict=True)
    ]
    draw_panels(ax, panels, names=[_name(row) for row in plot.rows])
    return ax


def _name(row: ComponentRow) -> str:
    used, owned = format_bytes(row.used_bytes), format_bytes(row.weight_bytes)
    usage = "" if used == owned else f", {used if row.used_bytes else 'none'} of its weights used"
    return f"{row.component}: {row.class_name}, {row.dtype}{usage}"


def _bars(row: ComponentRow, look: Look) -> tuple[Bar, Bar, Bar]:
    """What a row has in each panel."""
    weights, activation_bytes = row.weight_bytes, row.activation_bytes
    activations = "never called" if activation_bytes is None else format_bytes(activation_bytes)
    copy = format_seconds(row.copy_seconds) if row.used_bytes else "nothing to copy"
    return (
        Bar(length=weights, words=format_bytes(weights), look=look),
        Bar(length=activation_bytes, words=activations, look=look),
        Bar(length=row.copy_seconds, words=copy, look=look),
    )
