"""A plan as one HTML file that can be sent, opened anywhere and printed: nothing in it is fetched, nothing runs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vramtune.reports import plots
from vramtune.reports.cards import (
    comparison_sentence,
    frontier_sentence,
    plan_facts,
    plan_title,
    verdict,
)
from vramtune.reports.columns import Table
from vramtune.reports.reasons import sentence
from vramtune.reports.svg import Picture, svg_of
from vramtune.reports.tables import (
    beside_table,
    component_table,
    mode_table,
    placement_table,
    point_table,
    stage_table,
    stock_table,
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
    """The id on the page."""
    title: str
    source: Source | None
    """None where figures of both kinds stand side by side."""
    summary: str = ""
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()


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
    """Write the page: the verdict, why, and a section for each noun that is given. Equal nouns give equal pages.

    A `FileError` names the file where it cannot be written.
    """
    sections = (
        _measured(plan, measurement) if measurement else None,
        _modes(comparison) if comparison else None,
        _call(plan, timeline),
        _frontier(frontier) if frontier else None,
        _components(profile, plan),
    )
    page = render(
        "report.html.jinja",
        title=plan_title(plan),
        verdict=verdict(plan, measurement),
        facts=plan_facts(plan, measurement),
        reasons=tuple(map(sentence, plan.reasons)),
        sections=tuple(filter(None, sections)),
        environment=tuple(_environment(profile, plan)),
    )
    write_file(path, page.encode())


def _measured(plan: Plan, measurement: Measurement) -> Section:
    data = plots.predicted_and_measured(measurement, plan=plan)
    return Section(
        name="measured",
        title="Predicted beside measured",
        source=None,
        pictures=(svg_of(plots.draw_measured, data, name="measured-figure"),),
        tables=(beside_table(plan, measurement),),
    )


def _modes(comparison: Comparison) -> Section:
    data = plots.mode_seconds(comparison)
    return Section(
        name="modes",
        title="Beside the stock diffusers modes",
        source="predicted",
        summary=comparison_sentence(comparison),
        pictures=(svg_of(plots.draw_modes, data, name="modes-figure"),),
        tables=(mode_table(comparison),),
    )


def _call(plan: Plan, timeline: Timeline | None) -> Section:
    return Section(
        name="call",
        title="The call, stage by stage",
        source="predicted",
        pictures=tuple(_call_pictures(timeline)) if timeline else (),
        tables=(placement_table(plan), stage_table(plan)),
    )


def _call_pictures(timeline: Timeline) -> Iterator[Picture]:
    yield svg_of(plots.draw_memory, plots.memory_over_call(timeline), name="memory-figure")
    yield svg_of(plots.draw_peaks, plots.stage_peaks(timeline), name="peaks-figure")
    yield svg_of(plots.draw_lanes, plots.step_lanes(timeline), name="lanes-figure")


def _frontier(frontier: Frontier) -> Section:
    data = plots.latency_frontier(frontier)
    return Section(
        name="frontier",
        title="With less memory, or more",
        source="predicted",
        summary=frontier_sentence(frontier),
        pictures=(svg_of(plots.draw_frontier, data, name="frontier-figure"),),
        tables=(point_table(frontier), stock_table(frontier)),
    )


def _components(profile: Profile, plan: Plan) -> Section:
    data = plots.component_costs(profile, permissions=plan.permissions)
    return Section(
        name="components",
        title="What each component costs",
        source="predicted",
        pictures=(svg_of(plots.draw_components, data, name="components-figure"),),
        tables=(component_table(profile, plan),),
    )


def _environment(profile: Profile, plan: Plan) -> Iterable[tuple[str, Pairs]]:
    """The facts that the figures hold for: the call, the device and the versions."""
    settings = tuple((name, str(value)) for name, value in plan.workload.call_kwargs.items())
    yield "Call", (("pipeline", plan.pipeline_class), *(settings or (("settings", "the pipeline's own"),)))
    yield f"GPU ({profile.device.source})", tuple(_device(profile.device))
    yield "Versions", tuple(plan.versions.items())


def _device(device: Device) -> Iterator[tuple[str, str]]:
    yield "name", device.name
    yield "memory", format_bytes(device.total_bytes)
    yield "usable memory", format_bytes(device.usable_bytes)
    yield "CUDA context", format_bytes(device.context_bytes)
    yield "memory rate", f"{device.memory_bytes_per_second / 1e9:.0f} GB/s"
    for dtype, rate in device.flops_per_second.items():
        yield f"{dtype} rate", f"{rate / 1e12:.0f} TFLOP/s"
    yield "copies from pinned memory", f"{device.pinned_copy_bytes_per_second / 1e9:.1f} GB/s"
    yield "copies from pageable memory", f"{device.pageable_copy_bytes_per_second / 1e9:.1f} GB/s"
