"""`vramtune models` and `vramtune gpus`."""

import typer

from vramtune.cli.options import Json, examples
from vramtune.cli.output import print_text


def add_to(app: typer.Typer) -> None:
    """Make them commands."""
    app.command(epilog=examples("vramtune models", "vramtune models --json"))(models)
    app.command(epilog=examples("vramtune gpus", "vramtune gpus --json"))(gpus)


def models(as_json: Json = False) -> None:
    """List the pipelines that are known by name.

    --json prints {"models": []}.
    """
    from vramtune import catalog
    from vramtune.reports import json_output, terminal

    if as_json:
        typer.echo(json_output.object_json(models=catalog.models()))
    else:
        print_text(terminal.model_table(catalog.models()))


def gpus(as_json: Json = False) -> None:
    """List the GPUs that are known by name, and their rates.

    --json prints {"gpus": []}.
    """
    from vramtune.machine import gpus
    from vramtune.reports import json_output, terminal

    if as_json:
        typer.echo(json_output.object_json(gpus=gpus.gpus()))
    else:
        print_text(terminal.device_table(gpus.gpus()))
