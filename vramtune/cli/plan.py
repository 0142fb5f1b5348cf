"""`vramtune plan`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vramtune.cli import files, inputs, options, output
from vramtune.errors import BudgetError

if TYPE_CHECKING:
    from vramtune.schema import Plan, Profile

EXAMPLES = options.examples(
    'vramtune plan sdxl --vram-gb 8 --ram-gb 16 --gpu "RTX 4060"',
    "vramtune plan wan2.1-14b --vram-gb 12 --gpu 4070 --allow vae_tiling",
    "vramtune plan flux.1-dev --quantize transformer=nf4 --vram-gb 8 --gpu 4060",
    "vramtune plan profile.json --vram-gb 8 --report plan.html --save plan.json",
)


def plan(
    model: options.Model,
    vram_gb: options.VramGb,
    settings: options.Settings,
    ram_gb: options.RamGb = None,
    lock_gb: options.LockGb = None,
    storage_rate: options.StorageRate = None,
    gpu: options.Gpu = None,
    quantize: options.Quantize = None,
    allow: options.Allow = None,
    as_json: options.Json = False,
    plot: Annotated[Path | None, options.plot_option("memory over the call")] = None,
    save: Annotated[Path | None, typer.Option("--save", metavar="FILE", help="Write the plan: FILE.json.")] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write a page to send: FILE.html.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", metavar="FILE", help="Write a trace for ui.perfetto.dev: FILE.json.")
    ] = None,
) -> None:
    """Say whether MODEL runs in a VRAM budget, how, how fast, and why.

    Needs no GPU and no weights. Every figure is predicted. Left-out settings are those of the
    model's card, of other models the pipeline's own defaults.

    --json prints {"fits": true, "profile": {}, "plan": {}, "comparison": {}}. Where nothing fits, "fits" is
    false, and "error", "smallest_bytes", "permission" and "permitted_bytes" stand in place of "plan".

    Exit codes: 0 fits, 3 does not fit, 2 wrong usage, 1 the pipeline's call could not be followed.
    """
    with output.exit_codes():
        budget_bytes = options.budget(vram_gb)
        ram_bytes, lock_bytes = options.host(ram_gb, name="--ram-gb"), options.host(lock_gb, name="--lock-gb")
        storage_bytes_per_second = options.storage_rate(storage_rate)
        permissions, quantized = options.permitted(allow), options.quantized(quantize)
        files.check_plot(plot)
        files.check_path(save, option="--save", formats=files.JSON)
        files.check_path(report, option="--report", formats=files.HTML)
        files.check_path(trace, option="--trace", formats=files.JSON)
        files.check_apart({"MODEL": Path(model), "--save": save, "--trace": trace})
        with output.progress() as show:
            profile = inputs.profile_of(
                model,
                gpu=gpu,
                quantize=quantized,
                settings=settings,
                budget_bytes=budget_bytes,
                allow=permissions,
                show=show,
            )
            if storage_bytes_per_second is not None:
                profile = inputs.with_storage(profile, storage_bytes_per_second)
            show("Planning")
            made = inputs.plan_or_error(profile, budget_bytes, permissions, ram_bytes=ram_bytes, lock_bytes=lock_bytes)
            if not isinstance(made, BudgetError):
                fitting = made
                files.write(save, fitting.save, option="--save", show=show)
                files.write(plot, lambda path: _draw(profile, fitting, path), option="--plot", show=show)
                files.write(report, lambda path: _report(profile, fitting, path), option="--report", show=show)
                files.write(trace, lambda path: _trace(profile, fitting, path), option="--trace", show=show)
        comparison = inputs.comparison_of(profile, budget_bytes, made, permissions, ram_bytes=ram_bytes)
        if isinstance(made, BudgetError):
            files.warn_unwritten(save, plot, report, trace)
            output.end_without_plan(made, profile, comparison, as_json=as_json)
        from vramtune.reports import json_output, terminal

        if as_json:
            typer.echo(json_output.plan_json(profile, made, comparison))
        else:
            output.print_text(terminal.plan_report(profile, made, comparison))


def _draw(profile: "Profile", plan: "Plan", path: Path) -> None:
    from vramtune.tuner.simulate import timeline

    files.save_plot(timeline(profile, plan).plot_memory(), path)


def _report(profile: "Profile", plan: "Plan", path: Path) -> None:
    from vramtune.tuned import write_report

    write_report(profile, plan, path)


def _trace(profile: "Profile", plan: "Plan", path: Path) -> None:
    from vramtune.reports.trace import timeline_trace
    from vramtune.schema import write_file
    from vramtune.tuner.simulate import timeline

    write_file(path, timeline_trace(timeline(profile, plan)))
