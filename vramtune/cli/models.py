"""`vramtune models`."""

import typer

from vramtune.cli import options, output

EXAMPLES = options.examples("vramtune models", "vramtune models --json")


def models(as_json: options.Json = False) -> None:
    """List the pipelines that are known by name.

    --json prints {"models": []}.
    """
    from vramtune import catalog
    from vramtune.reports import json_output, terminal

    if as_json:
        typer.echo(json_output.object_json(models=catalog.models()))
    else:
        output.print_text(terminal.model_list(catalog.models()))
