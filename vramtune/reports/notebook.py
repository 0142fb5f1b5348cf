"""Nouns as the last line of a cell: compact HTML in notebooks, a few lines in IPython's terminal.

The nouns know nothing of this: IPython is told what to do with each type, by the type's name, so that nothing is
imported before one is shown.
"""

from typing import Any, Protocol

SHOWN = (
    ("vramtune.schema.profile", "Profile"),
    ("vramtune.schema.plan", "Plan"),
    ("vramtune.schema.plan", "Comparison"),
    ("vramtune.schema.plan", "Frontier"),
    ("vramtune.schema.plan", "Timeline"),
    ("vramtune.schema.measurement", "Measurement"),
    ("vramtune.api", "Tuned"),
)
"""Module and name of each type."""


class Printer(Protocol):
    """Where IPython's formatter of plain text wants it."""

    def text(self, obj: str) -> None:
        """Write it."""


def register(shell: Any) -> None:
    """Teach an IPython shell to show nouns; `shell` is what `IPython.get_ipython()` returns."""
    formatters = shell.display_formatter.formatters
    for module, name in SHOWN:
        formatters["text/html"].for_type_by_name(module, name, as_html)
        formatters["text/plain"].for_type_by_name(module, name, _print)


def as_html(noun: object) -> str:
    """A fragment without scripts or anything to fetch, right on light and dark pages."""
    from vramtune.reports.cards import card
    from vramtune.reports.templating import render

    return render("card.html.jinja", card=card(noun))


def as_text(noun: object) -> str:
    """The same in a few lines of plain text."""
    from vramtune.reports.cards import card
    from vramtune.reports.plain import card_text

    return card_text(card(noun))


def _print(noun: object, printer: Printer, cycle: bool) -> None:
    printer.text(as_text(noun))
