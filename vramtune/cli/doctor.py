"""`vramtune doctor`."""

import typer

from vramtune.cli.options import Json, examples
from vramtune.cli.output import FAILED, print_text, progress

EXAMPLES = examples("vramtune doctor", "vramtune doctor --json")


def add_to(app: typer.Typer) -> None:
    """Make it a command."""
    app.command(epilog=EXAMPLES)(doctor)


def doctor(as_json: Json = False) -> None:
    """Say whether autotune works on this machine, or what it lacks.

    Versions are held against those that vramtune supports. What says "measured" was: copies and arithmetic are
    timed on the GPU in about half a second.

    --json prints {"ready": true, "checks": [], "machine": {}}.

    Exit codes: 0 autotune works here, 1 something is missing.
    """
    with progress() as show:
        show("Looking at this machine")
        from vramtune.machine.doctor import examine
        from vramtune.reports import doctor

        machine = examine()
    rows = doctor.check_rows(machine)
    if as_json:
        typer.echo(doctor.check_json(machine, rows))
    else:
        print_text(doctor.check_report(rows))
    if not doctor.is_ready(rows):
        raise typer.Exit(FAILED)
