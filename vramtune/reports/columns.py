"""What tables are made of: columns, cells, and how a column's cells are written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from vramtune.schema import Source
from vramtune.units import GIB, format_seconds

UNKNOWN = "-"

Tone = Literal["good", "attention", "bad", "faint"]
Medium = Literal["text", "page"]
"""80 columns of a terminal, or a page that scrolls sideways."""
Observation = TypeVar("Observation")
Quantity = TypeVar("Quantity", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """What stands above a column, on which side its cells stand, and where it is shown."""

    heading: str
    short: str = ""
    """The heading in text, where the long one would need too much of 80 columns."""
    unit: str = ""
    alignment: Literal["left", "right"] = "right"
    only: Medium | None = None
    """The one medium that shows the column; None means both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What stands in a table."""

    text: str
    share: float | None = None
    """Length of the bar behind it, 0 to 1."""
    tone: Tone | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table; its first column names the rows."""

    title: str
    source: Source | None
    """None where columns of both kinds stand side by side (then their headings say it) and where nothing is either."""
    note: str = ""
    """What a reader needs to understand the headings."""
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    marked: int | None = None
    """Index of the row that the table is about."""

    def in_medium(self, medium: Medium) -> "Table":
        """The table with the columns that the medium shows."""
        shown = [i for i, column in enumerate(self.columns) if column.only in (None, medium)]
        rows = tuple(tuple(row[i] for i in shown) for row in self.rows)
        return replace(self, columns=tuple(self.columns[i] for i in shown), rows=rows)


Field = Callable[[Sequence[Observation]], tuple[Column, Sequence[Cell]]]
"""A column and its cells, made from all rows."""


def table_of(
    title: str,
    source: Source | None,
    observations: Sequence[Observation],
    *fields: Field[Observation],
    note: str = "",
    marked: int | None = None,
) -> Table:
    """A row per observation."""
    columns, cells = zip(*(field(observations) for field in fields), strict=True)
    rows = tuple(zip(*cells, strict=True))
    return Table(title=title, source=source, note=note, columns=columns, rows=rows, marked=marked)


def cells(column: Column, cell: Callable[[Observation], Cell]) -> Field[Observation]:
    """Cells that are made by hand."""
    return lambda rows: (column, [cell(row) for row in rows])


def words(heading: str, text: Callable[[Observation], str], *, only: Medium | None = None) -> Field[Observation]:
    """Words, flush left."""
    return cells(Column(heading=heading, alignment="left", only=only), lambda row: Cell(text=text(row)))


def figure(
    heading: str, text: Callable[[Observation], str], *, unit: str = "", only: Medium | None = None
) -> Field[Observation]:
    """A figure that is written by hand."""
    return cells(Column(heading=heading, unit=unit, only=only), lambda row: Cell(text=text(row)))


def gib(
    heading: str,
    num_bytes: Callable[[Observation], int | None],
    *,
    bars: bool = False,
    short: str = "",
    only: Medium | None = None,
) -> Field[Observation]:
    """Bytes in GiB."""
    return quantities(Column(heading=heading, short=short, unit="GiB", only=only), num_bytes, _in_gib, bars=bars)


def time(
    heading: str,
    seconds: Callable[[Observation], float | None],
    *,
    bars: bool = False,
    short: str = "",
    only: Medium | None = None,
) -> Field[Observation]:
    """Seconds, each in its own unit."""
    return quantities(Column(heading=heading, short=short, only=only), seconds, format_seconds, bars=bars)


def quantities(
    column: Column, quantity: Callable[[Observation], Quantity | None], write: Callable[[Quantity], str], *, bars: bool
) -> Field[Observation]:
    """Quantities, each with a bar where they have bars: the largest one's is the longest."""

    def field(rows: Sequence[Observation]) -> tuple[Column, Sequence[Cell]]:
        found = [quantity(row) for row in rows]
        most = max(filter(None, found), default=0) if bars else 0
        return column, [_cell(each, write, most) for each in found]

    return field


def _cell(quantity: Quantity | None, write: Callable[[Quantity], str], most: float) -> Cell:
    if quantity is None:
        return Cell(text=UNKNOWN)
    return Cell(text=write(quantity), share=quantity / most if most > 0 else None)


def _in_gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f}"


def times(ratio: float | None) -> str:
    """A ratio for people: `"1.08x"`."""
    return UNKNOWN if ratio is None else f"{ratio:.2f}x"
