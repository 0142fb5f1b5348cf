"""`vramtune gpus`."""

import typer

from vramtune.cli.options import Json, examples
from vramtune.cli.output import print_text

EXAMPLES = examples("vramtune gpus", "vramtune gpus --json")


def add_to(app: typer.Typer) -> None:
    """Make it a command."""
    app.command(epilog=EXAMPLES)(gpus)


def gpus(as_json: Json = False) -> None:
    """List the GPUs that are known by name, and their rates.

    --json prints {"gpus": []}.
    """
    from vramtune.machine.gpus import gpus as listed
    from vramtune.reports import json_output, terminal

    if as_json:
        typer.echo(json_output.object_json(gpus=listed()))
    else:
        print_text(terminal.gpu_list(listed()))
