"""`vramtune compare`."""

from pathlib import Path
from typing import Annotated

import typer

from vramtune.cli import files, inputs, options, output
from vramtune.errors import BudgetError

EXAMPLES = options.examples(
    "vramtune compare sdxl --vram-gb 8 --gpu 4060",
    "vramtune compare flux.1-dev --vram-gb 12 --gpu 4070 --plot modes.png",
    "vramtune compare sdxl --vram-gb 6 --gpu 3060 --quantize unet=fp8",
    "vramtune compare profile.json --vram-gb 6 --json",
)


def compare(
    model: options.Model,
    vram_gb: options.VramGb,
    settings: options.Settings,
    ram_gb: options.RamGb = None,
    gpu: options.Gpu = None,
    quantize: options.Quantize = None,
    allow: options.Allow = None,
    as_json: options.Json = False,
    plot: Annotated[Path | None, options.plot_option("each mode's seconds")] = None,
) -> None:
    """Put the stock diffusers modes beside the plan in a VRAM budget.

    The stock modes are predicted under the permissions that the plan uses. Needs no GPU and no weights. Every figure is
    predicted.

    --json prints {"fits": true, "profile": {}, "comparison": {}}. Where no plan fits, "fits" is false, and
    "error", "smallest_bytes", "permission" and "permitted_bytes" are added.

    Exit codes: 0 the plan fits, 3 it does not, 2 wrong usage, 1 the pipeline's call could not be followed.
    """
    with output.exit_codes():
        budget_bytes, ram_bytes = options.budget(vram_gb), options.host(ram_gb, name="--ram-gb")
        permissions, quantized = options.permitted(allow), options.quantized(quantize)
        files.check_plot(plot)
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
            show("Planning")
            plan = inputs.plan_or_error(profile, budget_bytes, permissions, ram_bytes=ram_bytes)
            comparison = inputs.comparison_of(profile, budget_bytes, plan, permissions, ram_bytes=ram_bytes)
            files.write(plot, lambda path: files.save_plot(comparison.plot(), path), option="--plot", show=show)
        if isinstance(plan, BudgetError):
            output.end_without_plan(plan, profile, comparison, as_json=as_json)
        from vramtune.reports import json_output, terminal

        if as_json:
            typer.echo(json_output.comparison_json(profile, comparison))
        else:
            output.print_text(terminal.comparison_report(comparison))
