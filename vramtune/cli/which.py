"""`vramtune which`."""

from pathlib import Path
from typing import Annotated

import typer

from vramtune.cli import files, inputs, options, output

EXAMPLES = options.examples(
    "vramtune which flux.1-dev",
    "vramtune which sdxl --seconds 10 --vram-gb 8",
    "vramtune which wan2.1-14b --allow vae_tiling --plot gpus.png",
    "vramtune which flux.1-dev --quantize transformer=nf4 --steps 20 --json",
)


def which(
    model: options.Model,
    settings: options.Settings,
    seconds: Annotated[
        float | None, typer.Option("--seconds", metavar="S", help="What a call may take. Left out: any time.")
    ] = None,
    vram_gb: Annotated[
        str | None,
        typer.Option("--vram-gb", metavar="GIB", help="The budget on each GPU. Left out: all that it gives."),
    ] = None,
    quantize: options.Quantize = None,
    allow: options.Allow = None,
    as_json: options.Json = False,
    plot: Annotated[Path | None, options.plot_option("the seconds on each GPU")] = None,
) -> None:
    """Say which GPUs run MODEL, how, and how fast.

    Every GPU of `vramtune gpus`, in order: those that do it in time, the fastest first, those that take longer, those
    that it does not fit. Beside each stands what the least memory that works would cost. Needs no GPU and no weights. Every figure is predicted.

    --json prints {"fits": true, "ranking": {}}.

    Exit codes: 0 some GPU does it in time, 3 none does, 2 wrong usage, 1 the pipeline's call could not be followed.
    """
    with output.exit_codes():
        budget_bytes = None if vram_gb is None else options.budget(vram_gb)
        permissions, quantized = options.permitted(allow), options.quantized(quantize)
        most_seconds = options.time_limit(seconds)
        files.check_plot(plot)
        with output.progress() as show:
            trace = inputs.trace_of(model, quantize=quantized, settings=settings, allow=permissions, show=show)
            from vramtune import predict

            ranking = predict.rank(
                trace, asked_bytes=budget_bytes, most_seconds=most_seconds, allow=permissions, show=output.counted(show)
            )
            files.write(plot, lambda path: files.save_plot(ranking.plot(), path), option="--plot", show=show)
        from vramtune.reports import json_output, terminal

        if as_json:
            typer.echo(json_output.ranking_json(ranking))
        else:
            output.print_text(terminal.ranking_report(ranking))
        if not ranking.fits:
            raise typer.Exit(output.DOES_NOT_FIT)
