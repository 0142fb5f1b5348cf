"""`vramtune gpus`."""

import typer

from vramtune.cli import options, output

EXAMPLES = options.examples("vramtune gpus", "vramtune gpus --json")


def gpus(as_json: options.Json = False) -> None:
    """List the GPUs that are known by name, and their rates.

    --json prints {"gpus": []}.
    """
    from vramtune.machine.gpus import gpus as listed
    from vramtune.reports import json_output, terminal

    if as_json:
        typer.echo(json_output.object_json(gpus=listed()))
    else:
        output.print_text(terminal.gpu_list(listed()))
