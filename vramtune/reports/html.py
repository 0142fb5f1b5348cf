"""A plan as one HTML file that can be sent, opened anywhere and printed: nothing in it is fetched, nothing runs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vramtune.reports.cards import card, tuned_card
from vramtune.reports.columns import Table
from vramtune.reports.svg import Picture, svg_of
from vramtune.reports.tables import beside_table, component_table, placement_table, stage_table
from vramtune.reports.templating import render
from vramtune.schema import Comparison, Device, Frontier, Measurement, Plan, Profile, Source, Timeline, write_file
from vramtune.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page: words, then pictures, then tables."""

    name: str
    """The id on the page."""
    title: str
    source: Source | None = "predicted"
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
        card=tuned_card(plan, measurement),
        sections=tuple(filter(None, sections)),
        environment=tuple(_environment(profile, plan)),
    )
    write_file(path, page.encode())


def _measured(plan: Plan, measurement: Measurement) -> Section:
    return Section(
        name="measured",
        title="Predicted beside measured",
        source=None,
        pictures=(svg_of(partial(measurement.plot, plan), name="measured-figure"),),
        tables=(beside_table(plan, measurement),),
    )


def _modes(comparison: Comparison) -> Section:
    shown = card(comparison)
    return Section(
        name="modes",
        title="Beside the stock diffusers modes",
        summary=shown.summary,
        pictures=(svg_of(comparison.plot, name="modes-figure"),),
        tables=shown.tables,
    )


def _call(plan: Plan, timeline: Timeline | None) -> Section:
    drawn = (
        {
            "memory-figure": timeline.plot_memory,
            "peaks-figure": timeline.plot_peaks,
            "lanes-figure": timeline.plot_lanes,
        }
        if timeline
        else {}
    )
    return Section(
        name="call",
        title="The call, stage by stage",
        pictures=tuple(svg_of(plot, name=name) for name, plot in drawn.items()),
        tables=(placement_table(plan), stage_table(plan)),
    )


def _frontier(frontier: Frontier) -> Section:
    shown = card(frontier)
    return Section(
        name="frontier",
        title="With less memory, or more",
        summary=shown.summary,
        pictures=(svg_of(frontier.plot, name="frontier-figure"),),
        tables=shown.tables,
    )


def _components(profile: Profile, plan: Plan) -> Section:
    plot = partial(profile.plot, permissions=plan.permissions)
    return Section(
        name="components",
        title="What each component costs",
        pictures=(svg_of(plot, name="components-figure"),),
        tables=(component_table(profile, plan),),
    )


def _environment(profile: Profile, plan: Plan) -> Iterable[tuple[str, Pairs]]:
    """The facts that the figures hold for: the call, the device and the versions."""
    workload = plan.workload
    settings = tuple((name, str(value)) for name, value in workload.call_kwargs.items())
    if workload.is_of_method:
        settings = (("method", workload.method), *settings)
    model = (("model", workload.model),) if workload.model else ()
    quantized = tuple((f"{name} quantized", how) for name, how in workload.quantize.items())
    call = (("pipeline", plan.pipeline_class), *model, *quantized)
    yield "Call", (*call, *(settings or (("settings", "the pipeline's own"),)))
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
