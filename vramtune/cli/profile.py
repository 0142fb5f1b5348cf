"""`vramtune profile`."""

from pathlib import Path
from typing import Annotated

import typer

from vramtune.cli import files, inputs, options, output

EXAMPLES = options.examples(
    "vramtune profile sdxl --gpu 4060",
    "vramtune profile flux.1-dev --gpu 4070 --steps 20 --save flux.json",
    "vramtune profile ./my-pipeline --gpu 3060 --quantize transformer=gguf-q4_k_s",
    "vramtune plan flux.json --vram-gb 12",
)


def profile(
    model: options.Model,
    settings: options.Settings,
    gpu: options.Gpu = None,
    quantize: options.Quantize = None,
    allow: options.Allow = None,
    as_json: options.Json = False,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Write it, to be given as MODEL: FILE.json.")
    ] = None,
) -> None:
    """Say what each component costs in one call of MODEL.

    Weights, activations, compute, copies. Needs no GPU and no weights. Every figure is predicted. Left-out settings
    are those of the model's card, of other models the pipeline's own defaults.

    --json prints {"profile": {}}, in short; --save writes all that `plan`, `compare` and `frontier` need.

    Exit codes: 0 done, 2 wrong usage, 1 the pipeline's call could not be followed.
    """
    with output.exit_codes():
        files.check_path(save, option="--save", formats=files.JSON)
        quantized = options.quantized(quantize)
        with output.progress() as show:
            costs = inputs.profile_of(
                model, gpu=gpu, quantize=quantized, settings=settings, allow=options.permitted(allow), show=show
            )
            files.write(save, costs.save, option="--save", show=show)
        from vramtune.reports import json_output, terminal

        if as_json:
            typer.echo(json_output.profile_json(costs))
        else:
            output.print_text(terminal.profile_report(costs))
