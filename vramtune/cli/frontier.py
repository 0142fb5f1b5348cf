"""`vramtune frontier`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vramtune.cli import files, inputs, options, output
from vramtune.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vramtune.schema import Frontier, Profile

EXAMPLES = options.examples(
    "vramtune frontier sdxl --gpu 4060",
    "vramtune frontier flux.1-dev --gpu 4090 --plot frontier.png",
    "vramtune frontier flux.1-dev --gpu 4060 --quantize transformer=nf4",
    "vramtune frontier profile.json --json",
)


def frontier(
    model: options.Model,
    settings: options.Settings,
    gpu: options.Gpu = None,
    quantize: options.Quantize = None,
    allow: options.Allow = None,
    as_json: options.Json = False,
    plot: Annotated[Path | None, options.plot_option("seconds against memory")] = None,
) -> None:
    """Show latency against VRAM, from the smallest budget that works.

    The fastest plan at each of a row of budgets, up to where more buys nothing or the card is full; beside them
    the stock diffusers modes. Needs no GPU and no weights. Every figure is predicted.

    --json prints {"fits": true, "profile": {}, "frontier": {}}. Where nothing fits the card, it is what
    `vramtune plan` prints for all that the card gives.

    Exit codes: 0 something fits the card, 3 nothing does, 2 wrong usage, 1 the pipeline's call could not be
    followed.
    """
    with output.exit_codes():
        permissions, quantized = options.permitted(allow), options.quantized(quantize)
        files.check_plot(plot)
        with output.progress() as show:
            profile = inputs.profile_of(
                model, gpu=gpu, quantize=quantized, settings=settings, allow=permissions, show=show
            )
            traced = _frontier_or_error(profile, permissions, show=output.counted(show))
            if not isinstance(traced, BudgetError):
                curve = traced
                files.write(plot, lambda path: files.save_plot(curve.plot(), path), option="--plot", show=show)
        if isinstance(traced, BudgetError):
            files.warn_unwritten(plot)
            comparison = inputs.comparison_of(profile, profile.device.usable_bytes, traced, permissions)
            output.end_without_plan(traced, profile, comparison, as_json=as_json)
        from vramtune.reports import json_output, terminal

        if as_json:
            typer.echo(json_output.frontier_json(profile, traced))
        else:
            output.print_text(terminal.frontier_report(traced))


def _frontier_or_error(
    profile: "Profile", permissions: tuple[str, ...], *, show: "Callable[[str, int, int], None]"
) -> "Frontier | BudgetError":
    from vramtune.tuner.frontier import trace_frontier

    try:
        return trace_frontier(profile, allow=permissions, show=show)
    except BudgetError as error:
        return error
