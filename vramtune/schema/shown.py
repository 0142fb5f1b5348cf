"""How nouns show themselves: as a DataFrame, as a card in a notebook, as lines in IPython's terminal.

The only arrow from nouns to reports, followed when something is shown, not before.
"""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pandas import DataFrame


class Printer(Protocol):
    """Where IPython's formatter of plain text wants it."""

    def text(self, obj: str) -> None:
        """Write it."""


class Shown:
    """A noun that shows itself."""

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        # A dataclass writes a `__repr__` of its own, and IPython asks the class that has one first.
        cls._repr_pretty_ = Shown._repr_pretty_  # type: ignore[method-assign]

    def to_frame(self) -> "DataFrame":
        """A tidy pandas table: units in the columns' names, a missing value where something is unknown."""
        from vramtune.reports.frames import to_frame

        return to_frame(self)

    def _repr_html_(self) -> str:
        from vramtune.reports.notebook import as_html

        return as_html(self)

    def _repr_pretty_(self, printer: Printer, cycle: bool) -> None:
        from vramtune.reports.notebook import as_text

        printer.text(as_text(self))
