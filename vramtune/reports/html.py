"""A plan as one HTML file that can be sent, opened anywhere and printed: nothing in it is fetched, nothing runs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vramtune.reports import plots
from vramtune.reports.cards import (
    comparison_sentence,
    frontier_sentence,
    measured_facts,
    plan_facts,
    plan_title,
    verdict,
)
from vramtune.reports.svg import Picture, svg_of
from vramtune.reports.tables import (
    Grid,
    beside_grid,
    component_grid,
    mode_grid,
    placement_grid,
    point_grid,
    stage_grid,
)
from vramtune.reports.templating import render
from vramtune.schema import (
    Comparison,
    Device,
    Frontier,
    Measurement,
    Plan,
    Profile,
    Source,
    Timeline,
    write_file,
)
from vramtune.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page: words, then pictures, then tables."""

    name: str
    """Its id on the page."""
    title: str
    source: Source | None
    """None where figures of both kinds stand side by side."""
    summary: str = ""
    pictures: tuple[Picture, ...] = ()
    grids: tuple[Grid, ...] = ()


Pairs = tuple[tuple[str, str], ...]


def write_report(
    path: str | Path,
    *,
    profile: Profile,
    plan: Plan,
    comparison: Comparison | None = None,
    frontier: Frontier | None = None,
    timeline: Timeline | None = None,
    measurement: Measurement | None = None,
) -> None:
    """Write `report_html` into a file; a `FileError` that names it where that cannot be."""
    page = report_html(
        profile=profile,
        plan=plan,
        comparison=comparison,
        frontier=frontier,
        timeline=timeline,
        measurement=measurement,
    )
    write_file(path, page.encode())


def report_html(
    *,
    profile: Profile,
    plan: Plan,
    comparison: Comparison | None = None,
    frontier: Frontier | None = None,
    timeline: Timeline | None = None,
    measurement: Measurement | None = None,
) -> str:
    """The page: the verdict, why, and a section for each noun that is given. Equal nouns give equal pages."""
    sections: list[Section] = []
    if measurement:
        sections.append(_measured(measurement, plan=plan))
    if comparison:
        sections.append(_modes(comparison, profile=profile))
    sections.append(_call(timeline, profile=profile, plan=plan))
    if frontier:
        sections.append(_frontier(frontier, profile=profile))
    sections.append(_components(profile, plan=plan))
    return render(
        "report.html.jinja",
        title=plan_title(plan),
        verdict=verdict(plan, measured=measurement),
        facts=measured_facts(measurement, plan=plan) if measurement else plan_facts(plan),
        reasons=plan.reasons,
        sections=sections,
        environment=tuple(_environment(profile, plan)),
    )


def _measured(measurement: Measurement, *, plan: Plan) -> Section:
    data = plots.predicted_and_measured(measurement, plan=plan)
    return Section(
        name="measured",
        title="Predicted beside measured",
        source=None,
        pictures=(svg_of(plots.draw_measured, data, name="measured-figure"),),
        grids=(beside_grid(measurement, plan=plan),),
    )


def _modes(comparison: Comparison, *, profile: Profile) -> Section:
    data = plots.mode_seconds(comparison, profile=profile)
    return Section(
        name="modes",
        title="Beside the stock diffusers modes",
        source="predicted",
        summary=comparison_sentence(comparison),
        pictures=(svg_of(plots.draw_modes, data, name="modes-figure"),),
        grids=(mode_grid(comparison),),
    )


def _call(timeline: Timeline | None, *, profile: Profile, plan: Plan) -> Section:
    return Section(
        name="call",
        title="The call, stage by stage",
        source="predicted",
        pictures=tuple(_call_pictures(timeline, profile=profile, plan=plan)) if timeline else (),
        grids=(placement_grid(plan), stage_grid(plan)),
    )


def _call_pictures(timeline: Timeline, *, profile: Profile, plan: Plan) -> Iterator[Picture]:
    memory = plots.memory_over_call(timeline, profile=profile, plan=plan)
    yield svg_of(plots.draw_memory, memory, name="memory-figure")
    peaks = plots.stage_peaks(timeline, profile=profile, plan=plan)
    yield svg_of(plots.draw_peaks, peaks, name="peaks-figure")
    lanes = plots.step_lanes(timeline, profile=profile, plan=plan)
    yield svg_of(plots.draw_lanes, lanes, name="lanes-figure")


def _frontier(frontier: Frontier, *, profile: Profile) -> Section:
    data = plots.latency_frontier(frontier, profile=profile)
    return Section(
        name="frontier",
        title="With less memory, or more",
        source="predicted",
        summary=frontier_sentence(frontier),
        pictures=(svg_of(plots.draw_frontier, data, name="frontier-figure"),),
        grids=(point_grid(frontier),),
    )


def _components(profile: Profile, *, plan: Plan) -> Section:
    data = plots.component_costs(profile, permissions=plan.permissions)
    return Section(
        name="components",
        title="What each component costs",
        source=profile.source,
        pictures=(svg_of(plots.draw_components, data, name="components-figure"),),
        grids=(component_grid(profile, permissions=plan.permissions),),
    )


def _environment(profile: Profile, plan: Plan) -> Iterable[tuple[str, Pairs]]:
    """What the figures hold for: the call, the device and the versions."""
    settings = tuple((name, str(value)) for name, value in plan.workload.call_kwargs.items())
    yield "Call", (("pipeline", plan.pipeline_class), *(settings or (("settings", "the pipeline's own"),)))
    yield f"GPU ({profile.device.source})", tuple(_device(profile.device))
    yield "Versions", tuple(plan.versions.items())


def _device(device: Device) -> Iterator[tuple[str, str]]:
    yield "name", device.name
    yield "memory", format_bytes(device.total_bytes)
    yield "of it usable", format_bytes(device.usable_bytes)
    yield "CUDA context", format_bytes(device.context_bytes)
    yield "memory rate", f"{device.memory_bytes_per_second / 1e9:.0f} GB/s"
    for dtype, rate in device.flops_per_second.items():
        yield f"{dtype} rate", f"{rate / 1e12:.0f} TFLOP/s"
    yield "copies from pinned memory", f"{device.pinned_copy_bytes_per_second / 1e9:.1f} GB/s"
    yield "copies from pageable memory", f"{device.pageable_copy_bytes_per_second / 1e9:.1f} GB/s"
