"""A plan for a profile, or why there is none: what several commands ask for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import typer

from vramtune.cli.output import DOES_NOT_FIT, print_text
from vramtune.errors import BudgetError
from vramtune.units import budget_bytes

if TYPE_CHECKING:
    from vramtune.cli.inputs import Check
    from vramtune.schema import Comparison, Device, Plan, Profile


def check_of(vram_gb: float | None, allow: Sequence[str]) -> "Check":
    """Refuses a GPU with less memory than the budget, and permissions that do not exist."""

    def check(device: "Device") -> None:
        from vramtune.tuner import search

        search.check(device, device.total_bytes if vram_gb is None else budget_bytes(vram_gb), allow)

    return check


def plan_or_error(profile: "Profile", vram_gb: float, allow: Sequence[str]) -> "Plan | BudgetError":
    """The fastest plan, or why there is none."""
    from vramtune import api

    try:
        return api.plan(profile, vram_gb, allow=allow)
    except BudgetError as error:
        return error


def comparison_of(profile: "Profile", found: "Plan | BudgetError") -> "Comparison":
    """The stock modes beside a plan, or where there is none."""
    from vramtune.tuner import stock_modes

    if isinstance(found, BudgetError):
        return stock_modes.compare_modes(profile, found.budget_bytes)
    return stock_modes.compare_plan(profile, found)


def end_without_plan(error: BudgetError, profile: "Profile", *, as_json: bool) -> NoReturn:
    """Say what would do, and what the stock modes would need."""
    from vramtune.reports import json_output, terminal

    comparison = comparison_of(profile, error)
    if as_json:
        typer.echo(json_output.budget_json(error, profile, comparison))
    else:
        print_text(terminal.budget_report(error, profile, comparison))
    raise typer.Exit(DOES_NOT_FIT)
