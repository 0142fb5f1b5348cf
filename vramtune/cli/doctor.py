"""`vramtune doctor`."""

from typing import Annotated

import typer

from vramtune.cli import options, output

EXAMPLES = options.examples("vramtune doctor", "vramtune doctor --forget", "vramtune doctor --json")
Forget = Annotated[bool, typer.Option("--forget", help="Forget what was measured here before.")]


def doctor(forget: Forget = False, as_json: options.Json = False) -> None:
    """Say whether autotune works on this machine, or what it lacks.

    Versions are held against those that vramtune supports. What says "measured" was: copies and arithmetic are
    timed on the GPU in about half a second. They are remembered, and later predictions on this machine use them, with
    what calls of tuned pipelines took; --forget begins anew.

    --json prints {"ready": true, "checks": [], "machine": {}}.

    Exit codes: 0 autotune works here, 1 something is missing.
    """
    with output.progress() as show:
        show("Looking at this machine")
        from vramtune.machine import remembered
        from vramtune.machine.doctor import examine
        from vramtune.reports import doctor

        if forget:
            remembered.forget()
        machine = examine()
    rows = doctor.check_rows(machine)
    if as_json:
        typer.echo(doctor.check_json(machine, rows))
    else:
        output.print_text(doctor.check_report(rows))
    if not doctor.is_ready(rows):
        raise typer.Exit(output.FAILED)
