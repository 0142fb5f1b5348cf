"""Cards as plain text, for IPython in a terminal and for notebooks that show no HTML."""

import textwrap
from collections.abc import Iterator

from vramtune.reports.cards import Card, Fact
from vramtune.reports.tables import Column, Grid
from vramtune.schema import Source

NUM_COLUMNS = 100
GAP = "  "


def card_text(card: Card) -> str:
    """A card without its folded tables; sentences are wrapped, figures never."""
    lines = [line for words in _sentences(card) for line in textwrap.wrap(words, NUM_COLUMNS)]
    for grid in card.grids:
        lines += ["", _labelled(grid.title, grid.source), *_table(grid)]
    return "\n".join(lines)


def _sentences(card: Card) -> Iterator[str]:
    yield _labelled(card.title, card.source)
    if card.verdict:
        yield f"{_labelled(card.verdict.word, card.verdict.source)}. {card.verdict.sentence}"
    if card.summary:
        yield card.summary
    yield from map(_fact, card.facts)
    if card.reasons:
        yield "Why (predicted):"
    yield from (f"- {reason}" for reason in card.reasons)


def _labelled(title: str, source: Source | None) -> str:
    return f"{title} ({source})" if source else title


def _fact(fact: Fact) -> str:
    note = f", {fact.note}" if fact.note else ""
    return f"{fact.label}: {fact.value} ({fact.source}{note})"


def _table(grid: Grid) -> Iterator[str]:
    """Lines of columns, each as wide as its widest cell or word of its heading."""
    texts = [[row[index].text for row in grid.rows] for index in range(len(grid.columns))]
    columns = [_lines(column, cells) for column, cells in zip(grid.columns, texts, strict=True)]
    num_heading = max(len(column) for column in columns) - len(grid.rows)
    for number, line in enumerate(_aligned(grid.columns, columns)):
        if number == num_heading:
            yield "-" * len(line)
        yield line.rstrip()


def _lines(column: Column, cells: list[str]) -> list[str]:
    """A column from top to bottom, its heading wrapped to the width that it needs anyway."""
    heading = f"{column.heading} ({column.unit})" if column.unit else column.heading
    width = max(map(len, [*cells, *heading.split()]))
    return [*textwrap.wrap(heading, width), *cells]


def _aligned(headings: tuple[Column, ...], columns: list[list[str]]) -> list[str]:
    """The columns side by side, flush at the bottom."""
    height = max(map(len, columns))
    padded = [
        [_pad(text, heading, max(map(len, lines))) for text in [""] * (height - len(lines)) + lines]
        for heading, lines in zip(headings, columns, strict=True)
    ]
    return [GAP.join(line) for line in zip(*padded, strict=True)]


def _pad(text: str, column: Column, width: int) -> str:
    return text.ljust(width) if column.alignment == "left" else text.rjust(width)
