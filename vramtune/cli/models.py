"""`vramtune models`."""

import typer

from vramtune.cli.options import Json, examples
from vramtune.cli.output import print_text

EXAMPLES = examples("vramtune models", "vramtune models --json")


def add_to(app: typer.Typer) -> None:
    """Make it a command."""
    app.command(epilog=EXAMPLES)(models)


def models(as_json: Json = False) -> None:
    """List the pipelines that are known by name.

    --json prints {"models": []}.
    """
    from vramtune import catalog
    from vramtune.reports import json_output, terminal

    if as_json:
        typer.echo(json_output.object_json(models=catalog.models()))
    else:
        print_text(terminal.model_list(catalog.models()))
