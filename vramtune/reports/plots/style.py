"""What all plots share: colours and hatches, axes, titles, legends, and how a figure is saved.

Colours are Okabe and Ito's (2008), told apart by every kind of colour vision; hatches, shapes and the order of
the parts tell them apart in grey. Nothing here touches pyplot's global state, so that it works without a display.
"""

import io
import itertools
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from vramtune.errors import UsageError
from vramtune.reports.plots.owners import ACTIVATIONS, CACHED, CONTEXT, OTHER, PIPELINE, SLOTS, WORKSPACES, Owner
from vramtune.schema import Plan, checked_path, write_file
from vramtune.units import format_bytes, format_seconds

Properties = dict[str, Any]
"""Keyword arguments of a matplotlib artist."""

P = ParamSpec("P")

FORMATS = ("png", "svg", "pdf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A colour, and the hatch that stands for it in grey."""

    color: str
    hatch: str = ""

    @property
    def filled(self) -> Properties:
        """How a patch of that look is filled and edged."""
        return {"facecolor": self.color, "hatch": self.hatch, "edgecolor": "white", "linewidth": 0.4}


OWNER_LOOKS = {
    CONTEXT: Look(color="#404040"),
    WORKSPACES: Look(color="#9E9E9E", hatch="..."),
    SLOTS: Look(color="#56B4E9", hatch="////"),
    PIPELINE: Look(color="#F0E442", hatch="xxxx"),
    ACTIVATIONS: Look(color="#D55E00", hatch="\\\\\\\\"),
    CACHED: Look(color="#F2C6A8", hatch="\\\\"),
    OTHER: Look(color="#C9C9C9"),
}
COMPONENT_LOOKS = (
    Look(color="#0072B2", hatch="---"),
    Look(color="#E69F00", hatch="|||"),
    Look(color="#009E73"),
    Look(color="#CC79A7", hatch="++"),
    Look(color="#000000", hatch="oo"),
)
FAMILIAR = {"text_encoder": 0, "text_encoder_2": 1, "transformer": 2, "unet": 2, "vae": 3}
"""Indices of the looks that these components have in every pipeline; the others share out what is left."""

BUDGET_LINE: Properties = {"color": "black", "linewidth": 1.6, "linestyle": (0, (5, 2))}
BOUND_LINE: Properties = {"color": "black", "linewidth": 1.8, "linestyle": (0, (1, 1.2))}
FARTHEST_BUDGET = 1.5
"""A budget of more than this many times the peak is named in the legend and not drawn."""

WORDS_BOX: Properties = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
"""The box behind words that stand on hatches or lines."""
LEGEND_BESIDE: Properties = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "frameon": False}

WIDTH_INCHES = 7.5
DOTS_PER_INCH = 160
TITLE_CHARACTERS = 72
"""Characters of a title that fit on one line."""
NO_BREAK = "\N{NO-BREAK SPACE}"
SMALL = 9
"""Font size in points: legible where the picture is 600 pixels wide."""
SMALL_WORDS: Properties = {"fontsize": SMALL, "verticalalignment": "center"}


def component_looks(components: Iterable[str]) -> dict[str, Look]:
    """How each of a profile's components looks in every plot."""
    names = tuple(components)
    taken = {name: COMPONENT_LOOKS[FAMILIAR[name]] for name in names if name in FAMILIAR}
    free = itertools.cycle(look for look in COMPONENT_LOOKS if look not in taken.values())
    return {name: taken.get(name) or next(free) for name in names}


def owner_looks(components: Iterable[str]) -> dict[Owner, Look]:
    """How everything that holds memory looks."""
    weights = component_looks(components).items()
    return {Owner(name=name, is_component=True): look for name, look in weights} | OWNER_LOOKS


def plan_title(plan: Plan, what: str) -> str:
    """A title of three lines: the plan's pipeline and budget, what is drawn of it, how long its call takes."""
    allowed = f" with {', '.join(plan.permissions)}" if plan.permissions else ""
    where = f"{format_bytes(plan.budget_bytes)} of {plan.device_name}{allowed}"
    seconds, bound = format_seconds(plan.estimate.seconds), format_seconds(plan.estimate.bound_seconds)
    return f"{plan.pipeline_class} in {where}:\n{what},\npredicted: {seconds} per call (bound {bound})"


def highest_drawn(peak: float, budget: float) -> float:
    """The budget or the peak, whichever is higher; the peak where the budget is too far above it to be drawn."""
    return max(peak, budget) if budget <= FARTHEST_BUDGET * peak else peak


def draw_budget(budget: float, *, peak: float, line: Callable[..., object], ax: Axes) -> None:
    """Draw the budget (GiB) with `line`, `ax.axhline` or `ax.axvline`; one far above the peak is only named."""
    label = f"budget {budget:.2f} GiB"
    if budget <= highest_drawn(peak, budget):
        line(budget, label=label, **BUDGET_LINE)
    else:
        ax.plot([], [], label=f"{label} (off scale)", **BUDGET_LINE)


def plain_words(draw: Callable[P, Axes]) -> Callable[P, Axes]:
    """Let a drawing function write names as they are: a `$` in one begins no formula (matplotlib's mathtext)."""

    @wraps(draw)
    def drawing(*args: P.args, **kwargs: P.kwargs) -> Axes:
        with matplotlib.rc_context({"text.parse_math": False}):
            return draw(*args, **kwargs)

    return drawing


def own_axes(height_inches: float) -> Axes:
    """Axes on a figure of their own."""
    return Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained").subplots()


def titled_axes(title: str, *, height_inches: float, ax: Axes | None) -> Axes:
    """The axes that were given, or some on a figure of their own, under a title."""
    titled = ax or own_axes(height_inches)
    write_title(titled, title)
    return titled


def write_title(ax: Axes, title: str) -> None:
    """Write a title of as many lines as it needs, flush left; no line breaks inside brackets."""
    whole = re.sub(r"\([^)]*\)", lambda brackets: brackets[0].replace(" ", NO_BREAK), title)
    lines = [textwrap.fill(line, TITLE_CHARACTERS) for line in whole.splitlines()]
    ax.set_title("\n".join(lines), fontsize=11, fontweight="bold", loc="left", parse_math=False)


def legend_below(
    ax: Axes, *, num_columns: int, below_inches: float = 0.5, handles: Sequence[Artist] | None = None
) -> None:
    """Put a legend under the horizontal axis and its label: of `handles`, or of what is labelled on `ax`."""
    down = ScaledTranslation(0, -below_inches, ax.figure.dpi_scale_trans)
    ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=ax.transAxes + down,
        ncols=num_columns,
        frameon=False,
        fontsize=SMALL,
        borderaxespad=0,
    )


def save(ax: Axes, path: str | Path) -> None:
    """Write the whole figure that `ax` is on, in the format that the file's suffix names: one of `FORMATS`."""
    suffix = checked_path(path).suffix.lstrip(".").lower()
    if suffix not in FORMATS:
        raise UsageError(f"A picture's name must end in .{' or .'.join(FORMATS)}; got {str(path)!r}.")
    file = io.BytesIO()
    ax.figure.canvas.figure.savefig(file, format=suffix, dpi=DOTS_PER_INCH)
    write_file(path, file.getvalue())
