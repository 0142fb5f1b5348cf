"""Nouns as text for a terminal or a pipe: rich renderables that fit 80 columns.

Bytes stand in GiB under a heading that says so; all of it is predicted, and every part says that too.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vramtune.errors import BudgetError
from vramtune.reports.cards import comparison_sentence, frontier_sentence
from vramtune.reports.frontier import Limit, StockRow, limits, stock_rows
from vramtune.reports.rows import (
    ComponentRow,
    ModeRow,
    PlacementRow,
    PointRow,
    StageRow,
    component_rows,
    mode_rows,
    placement_rows,
    point_rows,
    stage_label,
    stage_rows,
)
from vramtune.reports.tables import UNKNOWN
from vramtune.schema import (
    PLAN_MODE,
    Comparison,
    Device,
    Frontier,
    Measurement,
    Plan,
    Profile,
)
from vramtune.units import GIB, format_bytes, format_seconds

WORDS = ("fits", "placement", "title", "dtype", "class", "limit", "fastest stock mode")
"""Headings over words, flush left; under all others but the first stand figures."""
LONG = 20
"""Characters of a setting that is still shown."""


def plan_report(profile: Profile, plan: Plan, comparison: Comparison) -> Group:
    """A plan for people: the verdict first, then what it rests on."""
    placements = placement_rows(plan)
    return Group(
        verdict(plan, profile),
        component_table(component_rows(profile, permissions=plan.permissions), placements),
        stage_table(stage_rows(profile, plan)),
        mode_table(mode_rows(comparison)),
        reason_list(plan.reasons),
    )


def tuned_text(profile: Profile, plan: Plan, measured: Measurement | None) -> str:
    """A tuned pipeline in a few lines: what was predicted, where things are, what the last call took."""
    lines = [verdict(plan, profile).plain]
    for placement in plan.placements:
        roles = dict.fromkeys(placement.role(s) for s, active in enumerate(placement.active) if active)
        lines.append(f"  {placement.name}: {', '.join(roles)}")
    if measured is not None:
        lines.append(_measured_line(plan, measured))
    return "\n".join(lines)


def _measured_line(plan: Plan, measured: Measurement) -> str:
    exposed = sum(stage.exposed_copy_seconds for stage in measured.stages)
    context = "" if measured.context_bytes is not None else " without the CUDA context"
    over = ", OVER THE BUDGET" if measured.peak_bytes > plan.budget_bytes else ""
    return (
        f"Measured, last call: {format_seconds(measured.seconds)} on the GPU, {format_seconds(exposed)} of it "
        f"waiting for copies; peak {format_bytes(measured.peak_bytes)}{context}{over}; "
        f"{format_bytes(measured.moved_bytes)} copied; out of memory {measured.num_out_of_memory} times."
    )


def budget_report(error: BudgetError, profile: Profile, comparison: Comparison) -> Group:
    """Why nothing fits, what would, and what the stock modes would need."""
    message = Text(str(error))
    message.highlight_words(["does not fit"], style="bold red")
    return Group(
        message,
        component_table(component_rows(profile), ()),
        mode_table(mode_rows(comparison)),
    )


def profile_report(profile: Profile) -> Group:
    """What one call costs, whatever the plan."""
    compute = sum(stage.num_iterations * stage.seconds for stage in profile.stages)
    weights = sum(component.weights.num_bytes for component in profile.components)
    device = profile.device
    return Group(
        Text(
            f"{profile.pipeline_class}{_settings(profile)}, on {device.name} ({_gib(device.usable_bytes)} of "
            f"{_gib(device.total_bytes)} GiB usable).\n"
            f"{profile.source.capitalize()}: {_gib(weights)} GiB of weights; {format_seconds(compute)} of compute per "
            "call, which no plan beats."
        ),
        component_table(component_rows(profile), ()),
        activity_table(profile),
    )


def comparison_report(comparison: Comparison, profile: Profile) -> Group:
    """The stock modes beside the plan, under one budget."""
    return Group(
        Text(
            f"{profile.pipeline_class}{_settings(profile)}, in {_limit(comparison)} on {profile.device.name}.\n"
            f"Predicted: {comparison_sentence(comparison)}"
        ),
        mode_table(mode_rows(comparison)),
    )


def frontier_report(frontier: Frontier, profile: Profile) -> Group:
    """Latency against VRAM: the fastest plan at each of a row of budgets."""
    return Group(
        Text(
            f"{profile.pipeline_class}{_settings(profile)}, on {profile.device.name} "
            f"({_gib(profile.device.usable_bytes)} GiB usable).\nPredicted: {frontier_sentence(frontier)}"
        ),
        point_table(point_rows(frontier), limits(frontier, profile)),
        stock_table(stock_rows(frontier, profile)),
    )


def verdict(plan: Plan, profile: Profile) -> Text:
    """Whether it fits, into what, and how fast it will be."""
    estimate = plan.estimate
    allowed = f" Allowed and used: {', '.join(plan.permissions)}." if plan.permissions else ""
    return Text.assemble(
        ("Fits: ", "bold green"),
        f"predicted peak {_gib(estimate.peak_bytes)} of {_limit(plan)} on {plan.device_name}.\n",
        f"{plan.pipeline_class}{_settings(profile)}.{allowed}\n",
        f"Predicted {format_seconds(estimate.seconds)} per call, {estimate.gap_fraction:z.1%} above the bound "
        f"of {format_seconds(estimate.bound_seconds)} that no plan beats; "
        f"first call {format_seconds(estimate.first_call_seconds)}; "
        f"{format_bytes(estimate.moved_bytes)} copied to the GPU per call.",
    )


def _limit(held_to: Plan | Comparison) -> str:
    """The budget, and what of it the card can give."""
    limit = f"{_gib(held_to.budget_bytes)} GiB"
    if held_to.asked_bytes > held_to.budget_bytes:
        limit += f" usable ({_gib(held_to.asked_bytes)} asked)"
    return limit


def _settings(profile: Profile) -> str:
    """The call's settings without its prompts; of those that are long (a latent, an image) only the name."""
    settings = profile.workload.call_kwargs.items()
    shown = [
        f"{name}={value if len(str(value)) <= LONG else '...'}"
        for name, value in settings
        if isinstance(value, int | float) or "prompt" not in name
    ]
    return f", {', '.join(shown) or 'default settings'}"


def component_table(rows: Iterable[ComponentRow], placements: Sequence[PlacementRow]) -> RenderableType:
    """What each component costs, and where its weights are while it runs, if there is a plan."""
    headings = ["weights", "used", "activ.", "calls", "compute", "copy 1x"]
    table = _table("component", *headings, *(["placement"] if placements else []))
    for row in rows:
        cells = [
            row.component,
            _gib(row.weight_bytes),
            _gib(row.used_bytes),
            UNKNOWN if row.activation_bytes is None else _gib(row.activation_bytes),
            str(row.num_calls),
            format_seconds(row.compute_seconds) if row.num_calls else UNKNOWN,
            format_seconds(row.copy_seconds) if row.used_bytes else UNKNOWN,
        ]
        table.add_row(*cells, *([_placement(row, placements)] if placements else []))
    streamed = "; streamed: weight groups kept / all" if placements else ""
    return _titled(f"Components, predicted (GiB; of one call{streamed})", table)


def _placement(row: ComponentRow, placements: Iterable[PlacementRow]) -> str:
    if row.is_excluded:
        return "resident"
    if not row.used_bytes:
        return "unused"
    return placement_label([cell for cell in placements if cell.component == row.component])


def placement_label(cells: Iterable[PlacementRow]) -> str:
    """A component's roles in the stages where it runs: `"streamed 22/40"` keeps 22 of its 40 groups."""
    labels = [_role(cell) for cell in cells if cell.active]
    return ", ".join(dict.fromkeys(labels)) or UNKNOWN


def _role(cell: PlacementRow) -> str:
    return f"streamed {cell.num_kept}/{cell.num_groups}" if cell.role == "streamed" else cell.role


def stage_table(rows: Iterable[StageRow]) -> RenderableType:
    """What is on the GPU in each stage, how long the stage takes, and what is copied in for it."""
    table = _table("stage", "kept", "slots", "activ.", "peak", "seconds", "compute", "copied")
    for row in rows:
        table.add_row(
            stage_label(row.stage, row.num_iterations),
            _gib(row.kept_bytes),
            _gib(row.slot_bytes),
            _gib(row.activation_bytes),
            _gib(row.peak_bytes),
            format_seconds(row.seconds),
            format_seconds(row.compute_seconds),
            _gib(row.moved_bytes),
        )
    return _titled("Stages of a call, predicted (GiB; peak includes the CUDA context)", table)


def activity_table(profile: Profile) -> RenderableType:
    """The stages of a call: what runs, how long it computes, what it needs besides weights."""
    table = _table("stage", "activ.", "one iteration", "compute")
    for stage in profile.stages:
        table.add_row(
            stage_label(stage.name, stage.num_iterations),
            _gib(stage.activation_bytes + stage.pipeline_bytes),
            format_seconds(stage.seconds),
            format_seconds(stage.num_iterations * stage.seconds),
        )
    return _titled(f"Stages of a call, {profile.source} (GiB)", table)


def point_table(rows: Iterable[PointRow], limits: Iterable[Limit]) -> RenderableType:
    """The fastest plan at each budget, what limits it, and the fastest stock mode that fits as much."""
    table = _table("budget", "peak", "seconds", "/ bound", "limit", "fastest stock mode", "its time")
    for row, limit in zip(rows, limits, strict=True):
        table.add_row(
            _gib(row.budget_bytes),
            _gib(row.peak_bytes),
            format_seconds(row.seconds),
            f"{1 + row.gap_fraction:.3f}x",
            limit,
            row.stock_mode or "none fits",
            UNKNOWN if row.stock_seconds is None else format_seconds(row.stock_seconds),
        )
    return _titled("The fastest plan at each budget, predicted (GiB; of one call)", table)


def stock_table(rows: Iterable[StockRow]) -> RenderableType:
    """The stock modes at the memory that they need, beside the plan for as much."""
    table = _table("mode", "fits", "needs", "seconds", "vramtune", "/ plan")
    for row in rows:
        table.add_row(
            row.mode,
            "yes" if row.fits else "no",
            _gib(row.peak_bytes),
            format_seconds(row.seconds),
            UNKNOWN if row.plan_seconds is None else format_seconds(row.plan_seconds),
            UNKNOWN if row.plan_seconds is None else f"{row.seconds / row.plan_seconds:.2f}x",
        )
    return _titled("The stock diffusers modes, predicted (GiB; vramtune: in the same memory)", table)


def mode_table(rows: Iterable[ModeRow]) -> RenderableType:
    """The ways to run the pipeline, side by side."""
    table = _table("mode", "fits", "peak", "seconds", "/ plan", "in", "out")
    for row in rows:
        table.add_row(
            row.mode,
            {True: "yes", False: "no", None: UNKNOWN}[row.fits],
            _gib(row.peak_bytes),
            format_seconds(row.seconds),
            UNKNOWN if row.plan_ratio is None else f"{row.plan_ratio:.2f}x",
            _gib(row.moved_bytes),
            _gib(row.moved_back_bytes),
            style="bold" if row.mode == PLAN_MODE else "",
        )
    return _titled("The stock diffusers modes, predicted (GiB; in, out: copied per call)", table)


def reason_list(reasons: Iterable[str]) -> RenderableType:
    """Why the plan is what it is."""
    items = Table.grid(padding=(0, 1))
    for reason in reasons:
        items.add_row("-", Text(reason))
    return _titled("Why", items)


class Model(Protocol):
    """A pipeline that is known by name, as the catalog describes it."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def title(self) -> str: ...  # noqa: D102
    @property
    def num_parameters(self) -> int: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102


def model_table(models: Iterable[Model]) -> RenderableType:
    """The pipelines that are known by name."""
    table = _table("model", "title", "parameters", "dtype")
    for model in models:
        table.add_row(model.name, model.title, f"{model.num_parameters / 1e9:.2f} B", model.dtype)
    return table


def device_table(devices: Iterable[Device]) -> RenderableType:
    """The GPUs that can be named, with the rates that predictions rest on."""
    table = _table("GPU", "GiB", "usable", "float16 TFLOP/s", "memory GB/s", "copy GB/s")
    for device in devices:
        rate = device.flops_per_second.get("float16")
        table.add_row(
            device.name,
            f"{device.total_bytes / GIB:.0f}",
            f"{device.usable_bytes / GIB:.1f}",
            UNKNOWN if rate is None else f"{rate / 1e12:.0f}",
            f"{device.memory_bytes_per_second / 1e9:.0f}",
            f"{device.pinned_copy_bytes_per_second / 1e9:.0f}",
        )
    return table


def _table(first: str, *others: str) -> Table:
    """A table with names on the left and numbers flush right, except under headings that hold words."""
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column(first, overflow="fold")
    for heading in others:
        is_words = heading in WORDS
        table.add_column(heading, justify="left" if is_words else "right", no_wrap=not is_words)
    return table


def _titled(title: str, body: RenderableType) -> RenderableType:
    return Group("", Text(title, style="bold"), body)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f}"
