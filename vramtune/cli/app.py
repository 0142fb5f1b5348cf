"""The commands, put together, and what stands before them."""

import os
import warnings
from typing import Annotated

import typer

from vramtune import __version__
from vramtune.cli import compare, doctor, explore, frontier, gpus, models, output, plan, profile, sweep, which
from vramtune.cli.options import examples, with_settings

app = typer.Typer(
    name="vramtune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help is plain text of 80 columns wherever it goes, and needs no rich
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line."""
    # what the libraries warn of (a missing image backend, their own next version) says nothing about a plan
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.simplefilter("ignore", FutureWarning)
    with output.standard_output():
        app()


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"vramtune {__version__}")
        raise typer.Exit


@app.callback(
    epilog=examples(
        'vramtune plan sdxl --vram-gb 8 --gpu "RTX 4060"', "vramtune frontier flux.1-dev --gpu 4090", "vramtune doctor"
    )
)
def _before_a_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make a diffusers pipeline fit a VRAM budget, as fast as the hardware allows."""


for module, command in (
    (plan, plan.plan),
    (compare, compare.compare),
    (frontier, frontier.frontier),
    (profile, profile.profile),
    (which, which.which),
    (sweep, sweep.sweep),
    (explore, explore.explore),
    (doctor, doctor.doctor),
    (models, models.models),
    (gpus, gpus.gpus),
):
    app.command(epilog=module.EXAMPLES)(with_settings(command))
