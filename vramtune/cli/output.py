"""What people see while a command works and when it ends: progress, text, errors, exit codes."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NoReturn

import typer

from vramtune.errors import BudgetError, NoAcceleratorError, UsageError, VramtuneError
from vramtune.printable import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vramtune.schema import Comparison, Profile

FAILED = 1
WRONG_USAGE = 2
DOES_NOT_FIT = 3


def print_text(renderable: "RenderableType") -> None:
    """Print to stdout: as wide as the terminal, or plain text without trailing blanks into a pipe.

    Never narrower than its tables: a small terminal wraps lines, where a table would have to leave out letters and columns.
    """
    from rich.console import Console

    from vramtune.reports.terminal import num_columns

    console = Console(markup=False, highlight=False)
    if console.is_terminal:
        console.width = max(console.width, num_columns(renderable))
        console.print(renderable)
        return
    console.width = num_columns(renderable)
    with console.capture() as captured:
        console.print(renderable)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


@contextlib.contextmanager
def standard_output() -> Iterator[None]:
    """Letters that it cannot show are spelt; where it takes nothing more (a full disk), that is wrong usage."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except OSError as error:
        if error.filename is not None:  # of a file that could not be opened, not of an open stream
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python writes the rest at its end
        typer.echo(f"Error: Cannot write to standard output: {error.strerror}.", err=True)
        sys.exit(WRONG_USAGE)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Show a spinner and what is being done on stderr; nothing where stderr is not a terminal."""
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("Starting") as status:
        yield lambda doing: status.update(Text(printable(doing)))


def counted(show: Callable[[str], None]) -> Callable[[str, int, int], None]:
    """Shows what is being done with how much of it is done."""
    return lambda doing, done, total: show(f"{done} of {total}: {doing}")


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Errors of our own tree as one line on stderr and an exit code; any other keeps its traceback."""
    try:
        yield
    except (UsageError, NoAcceleratorError) as error:
        _fail(error, code=WRONG_USAGE)
    except VramtuneError as error:
        _fail(error, code=FAILED)


def end_without_plan(error: BudgetError, profile: "Profile", comparison: "Comparison", *, as_json: bool) -> NoReturn:
    """Say what would do, and what the stock modes would need."""
    from vramtune.reports import json_output, terminal

    if as_json:
        typer.echo(json_output.budget_json(error, profile, comparison))
    else:
        print_text(terminal.budget_report(error, profile, comparison))
    raise typer.Exit(DOES_NOT_FIT)


def _fail(error: VramtuneError, *, code: int) -> NoReturn:
    typer.echo(f"Error: {error}", err=True)
    raise typer.Exit(code)
