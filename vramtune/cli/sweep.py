"""`vramtune sweep`."""

import re
from pathlib import Path
from typing import Annotated

import typer

from vramtune.cli import files, inputs, options, output
from vramtune.errors import UsageError
from vramtune.units import budget_bytes

EXAMPLES = options.examples(
    "vramtune sweep all.csv",
    "vramtune sweep sdxl.csv --model sdxl --gpu 4060 --gpu 4090 --vram-gb 6,8,12",
    "vramtune sweep sizes.parquet --model sdxl --size 1024x1024 --size 512x512",
)
BUDGETS = "4,6,8,12,16,24"


def sweep(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="What to write: FILE.csv or FILE.parquet.")],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="MODEL", help="As in `vramtune plan`. May be repeated. Left out: all."),
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option("--gpu", metavar="NAME", help="A name of `vramtune gpus`. May be repeated. Left out: all."),
    ] = None,
    vram_gb: Annotated[str, typer.Option("--vram-gb", metavar="GIB,...", help="Budgets.")] = BUDGETS,
    size: Annotated[
        list[str] | None,
        typer.Option(
            "--size",
            metavar="WxH",
            help="Width and height, of a video with its frames (832x480x81). May be repeated. Left out: the model card's, or the pipeline's own.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", min=1, help="Denoising steps.")] = None,
    quantize: Annotated[
        list[str] | None,
        typer.Option(
            "--quantize",
            metavar="COMPONENT=HOW",
            help="As if these were quantized, beside as they are; several with commas. May be repeated.",
        ),
    ] = None,
    allow: options.Allow = None,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=1, help="Processes.")] = 1,
) -> None:
    """Plan many models, GPUs and budgets, to a file.

    One row for each combination of model, size, quantization, GPU and budget.
    A sweep that was cut goes on where it was: what is done is kept in FILE.parts until all of it is. Every figure is
    predicted. In Python, `vramtune.sweep` runs on a Dask or Ray cluster too (joblib.parallel_config).

    Exit codes: 0 done, 1 all rows have an error, 2 wrong usage. A model whose call cannot be followed has a row with the
    error.
    """
    with output.exit_codes():
        asked = budgets(vram_gb)
        files.check_path(out, option="FILE", formats=("csv", "parquet"))
        with output.progress() as show:
            show("Starting")
            from vramtune import catalog, sweeps
            from vramtune.machine.gpus import find_gpu, gpus
            from vramtune.tuner.search import check_permissions

            permissions = options.permitted(allow)
            check_permissions(permissions)
            settings = [_size(each) for each in size or ()] or [{}]
            rows = sweeps.sweep(
                model or catalog.names(),
                budgets=asked,
                devices=[find_gpu(each) for each in gpu] if gpu else gpus(),
                settings=[each | ({"steps": steps} if steps is not None else {}) for each in settings],
                quantizations=[{}, *(options.quantized([each]) for each in quantize or ())],
                allow=permissions,
                path=out,
                arguments=inputs.call_kwargs,
                jobs=jobs,
                show=output.counted(show),
            )
        errors = [row for row in rows if row.error]
        typer.echo(f"{len(rows)} row{'s' * (len(rows) != 1)} (predicted) in {out}.")
        if errors:
            typer.echo(f"{len(errors)} of them with an error, such as {errors[0].model}: {errors[0].error}", err=True)
        if len(errors) == len(rows):
            raise typer.Exit(output.FAILED)


def budgets(vram_gb: str) -> list[int]:
    """Bytes of several budgets, as they are typed."""
    return [budget_bytes(_number(each), name="--vram-gb") for each in vram_gb.split(",")]


def _number(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


def _size(text: str) -> dict[str, int]:
    """Width, height and frames as settings."""
    if not re.fullmatch(r"[1-9]\d{0,6}(x[1-9]\d{0,6}){1,2}", text):
        raise UsageError(f"--size takes WIDTHxHEIGHT or WIDTHxHEIGHTxFRAMES, such as 1024x1024; got {text!r}.")
    return dict(zip(("width", "height", "frames"), map(int, text.split("x")), strict=False))
