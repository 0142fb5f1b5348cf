"""`vramtune explore`."""

from pathlib import Path
from typing import Annotated

import typer

from vramtune.cli import inputs, options, output
from vramtune.cli.sweep import BUDGETS, budgets

EXAMPLES = options.examples(
    "vramtune explore --out site",
    "vramtune sweep sdxl.csv --model sdxl --quantize unet=nf4",
    "vramtune explore sdxl.csv --out site",
)


def explore(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where to; made where there is none.")],
    sweep: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="What `vramtune sweep` wrote. Left out: every model on every GPU is swept first, to FOLDER/sweep.csv.",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=1, help="Processes of that sweep.")] = 1,
) -> None:
    """Write a page to choose on: model, GPU, budget, quantization.

    One file, FOLDER/index.html, which needs no server and fetches nothing: verdict, stages, what less or more memory
    would give, every GPU. The sweep's file is put beside it. Every figure is predicted. To sweep every model takes some
    minutes; a sweep that was cut goes on where it was.

    Exit codes: 0 written, 2 wrong usage, such as a FILE that is no sweep.
    """
    with output.exit_codes():
        with output.progress() as show:
            from vramtune import catalog, sweeps
            from vramtune.machine.gpus import gpus
            from vramtune.schema import make_folder

            if sweep is None:
                sweep = make_folder(out) / "sweep.csv"
                sweeps.sweep(
                    catalog.names(),
                    budgets=budgets(BUDGETS),
                    devices=gpus(),
                    path=sweep,
                    arguments=inputs.call_kwargs,
                    jobs=jobs,
                    show=lambda doing, done, total: show(f"{done} of {total}: {doing}"),
                )
            show("Writing the page")
            page = sweeps.explore(sweep, out)
        typer.echo(f"{page} (predicted).")
