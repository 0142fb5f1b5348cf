"""`vramtune compare`."""

from pathlib import Path
from typing import Annotated

import typer

from vramtune.cli import files
from vramtune.cli.inputs import comparison_of, plan_or_error, profile_of
from vramtune.cli.options import (
    Allow,
    Gpu,
    Json,
    Model,
    Settings,
    VramGb,
    budget,
    examples,
    plot_option,
    with_settings,
)
from vramtune.cli.output import end_without_plan, exit_codes, print_text, progress
from vramtune.errors import BudgetError

EXAMPLES = examples(
    "vramtune compare sdxl --vram-gb 8 --gpu 4060",
    "vramtune compare flux.1-dev --vram-gb 12 --gpu 4070 --plot modes.png",
    "vramtune compare profile.json --vram-gb 6 --json",
)


def add_to(app: typer.Typer) -> None:
    """Make it a command."""
    app.command(epilog=EXAMPLES)(with_settings(compare))


def compare(
    model: Model,
    vram_gb: VramGb,
    settings: Settings,
    gpu: Gpu = None,
    allow: Allow = None,
    as_json: Json = False,
    plot: Annotated[Path | None, plot_option("each mode's seconds")] = None,
) -> None:
    """Put the stock diffusers modes beside the plan in a VRAM budget.

    Needs no GPU and no weights. Every figure is predicted.

    --json prints {"fits": true, "profile": {}, "comparison": {}}. Where no plan fits, "fits" is false, and
    "error", "smallest_bytes", "permission" and "permitted_bytes" are added.

    Exit codes: 0 the plan fits, 3 it does not, 2 wrong usage, 1 the pipeline's call could not be followed.
    """
    with exit_codes():
        budget_bytes = budget(vram_gb)
        permissions = tuple(allow or ())
        files.check_plot(plot)
        with progress() as show:
            profile = profile_of(
                model, gpu=gpu, settings=settings, budget_bytes=budget_bytes, allow=permissions, show=show
            )
            show("Planning")
            plan = plan_or_error(profile, budget_bytes, permissions)
            comparison = comparison_of(profile, plan)
            files.write(
                plot, lambda path: files.save_plot(comparison.plot(), path), option="--plot", show=show
            )
        if isinstance(plan, BudgetError):
            end_without_plan(plan, profile, comparison, as_json=as_json)
        from vramtune.reports import json_output, terminal

        if as_json:
            typer.echo(json_output.comparison_json(profile, comparison))
        else:
            print_text(terminal.comparison_report(comparison))
