"""Cards and tables as text, for a terminal or a pipe: of 80 columns, or what a table needs so that no word is cut."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.table import Table as RichTable
from rich.text import Text

from vramtune.errors import BudgetError
from vramtune.reports.cards import Card, Fact, card, likely_seconds, limit
from vramtune.reports.columns import Column, Table, Tone
from vramtune.reports.rows import placement_rows
from vramtune.reports.tables import Model, component_table, gpu_table, mode_table, model_table, stage_table
from vramtune.schema import Comparison, Device, Frontier, Plan, Profile, Ranking
from vramtune.units import format_bytes, format_seconds

NUM_COLUMNS = 80
"""Width that tables are made for."""
WIDEST = 1000
SHORT = 12
"""Characters of what is not worth a second line."""
STYLES: dict[Tone | None, str] = {
    None: "",
    "good": "green",
    "attention": "bold yellow",
    "bad": "bold red",
    "faint": "dim",
}


def plan_report(profile: Profile, plan: Plan, comparison: Comparison) -> Group:
    """A plan for people: the verdict first, then what it rests on, and why."""
    tables = (component_table(profile, plan), stage_table(plan), mode_table(comparison))
    return card_report(replace(card(plan), tables=tables))


def budget_report(error: BudgetError, profile: Profile, comparison: Comparison) -> Group:
    """Why nothing fits, what would, and what the stock modes would need."""
    message = Text(str(error))
    message.highlight_words(["does not fit"], style=STYLES["bad"])
    return Group(_prose(message), *_spaced((component_table(profile), mode_table(comparison))))


def profile_report(profile: Profile) -> Group:
    """What one call costs, whatever the plan."""
    return card_report(card(profile))


def comparison_report(comparison: Comparison) -> Group:
    """The stock modes beside the plan, under one budget."""
    return card_report(card(comparison))


def frontier_report(frontier: Frontier) -> Group:
    """Latency against VRAM: the fastest plan at each of a row of budgets."""
    return card_report(card(frontier))


def ranking_report(ranking: Ranking) -> Group:
    """Which GPU: each with what the call takes on it."""
    return card_report(card(ranking))


def model_list(models: Sequence[Model]) -> Group:
    """The pipelines that are known by name."""
    return table_text(model_table(models))


def gpu_list(devices: Sequence[Device]) -> Group:
    """The GPUs that are known by name."""
    return table_text(gpu_table(devices))


def one_line(plan: Plan) -> str:
    """A plan in one line: the budget, what a call is predicted to take, where each component is."""
    estimate = plan.estimate
    roles: dict[str, dict[str, None]] = {}
    for row in placement_rows(plan):
        if row.active:
            roles.setdefault(row.placement, {})[row.role] = None
    placed = ", ".join(f"{name} {'/'.join(names)}" for name, names in roles.items())
    likely = likely_seconds(estimate)
    return (
        f"{limit(plan)} on {plan.device_name}: predicted peak {format_bytes(estimate.peak_bytes)}, "
        f"{format_seconds(estimate.seconds)} per call ({f'{likely}, ' if likely else ''}bound {format_seconds(estimate.bound_seconds)}), "
        f"first call {format_seconds(estimate.first_call_seconds)}, {format_bytes(estimate.host_bytes)} of host memory "
        f"({format_bytes(estimate.locked_bytes)} page-locked); {placed}."
    )


def card_text(card: Card) -> str:
    """A card as plain text, without its folded tables."""
    report = card_report(card)
    # in a notebook rich would show it besides
    console = Console(width=num_columns(report), color_system=None, markup=False, highlight=False, force_jupyter=False)
    with console.capture() as captured:
        console.print(report)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def num_columns(report: RenderableType) -> int:
    """How wide text must be: 80 columns, or more where a table has too many figures and words for that."""
    return max(NUM_COLUMNS, Console(width=WIDEST).measure(report).minimum)


def card_report(card: Card) -> Group:
    """A card without its folded tables."""
    return Group(*map(_prose, _head(card)), *_spaced(card.tables), *map(_prose, _why(card)))


def _prose(words: RenderableType) -> RenderableType:
    """Sentences: as wide as is good to read, also above a table that is wider."""
    return Constrain(words, NUM_COLUMNS)


def _spaced(tables: tuple[Table, ...]) -> Iterator[RenderableType]:
    for table in tables:
        yield ""
        yield table_text(table)


def _head(card: Card) -> Iterator[RenderableType]:
    if card.verdict:
        style = f"bold {STYLES[card.verdict.tone]}"
        yield Text.assemble((card.verdict.word, style), f" ({card.verdict.source}). {card.verdict.sentence}")
    source = f" ({card.source})" if card.source else ""
    yield Text(f"{card.title}{source}.")
    if card.call:
        yield Text(f"Call: {card.call}.")
    if card.summary:
        yield Text(card.summary)
    if card.facts:
        yield _facts(card.facts)


def _facts(facts: tuple[Fact, ...]) -> RenderableType:
    lines = RichTable.grid(padding=(0, 2, 0, 0))
    for fact in facts:
        lines.add_row(fact.label, fact.value, ", ".join(filter(None, (fact.source, fact.note))))
    return Group("", lines)


def _why(card: Card) -> Iterator[RenderableType]:
    if card.reasons:
        lines = RichTable.grid(padding=(0, 1, 0, 0))
        for reason in card.reasons:
            lines.add_row("-", Text(reason))
        yield Group("", Text("Why (predicted)", style="bold"), lines)


def table_text(table: Table) -> Group:
    """A table under its title. Neither figures nor words are cut: headings and cells are wrapped between words."""
    shown = table.in_medium("text")
    headings = _headings(shown)
    lines = RichTable(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for column, heading, width in zip(shown.columns, headings, _widths(shown, headings), strict=True):
        lines.add_column(Text(heading), justify=column.alignment, width=width)
    for number, row in enumerate(shown.rows):
        style = "bold" if number == shown.marked else ""
        lines.add_row(*(Text(cell.text, style=STYLES[cell.tone]) for cell in row), style=style)
    title = _title(shown)
    return Group(*([_prose(Text(title, style="bold"))] if title else []), lines)


def _widths(table: Table, headings: list[str]) -> list[int]:
    """Of each column; those of words give way, the widest first, but not the rows' names, and no longest word."""
    cells = [[heading, *(row[i].text for row in table.rows)] for i, heading in enumerate(headings)]
    widths = [max(len(line) for text in column for line in text.split("\n")) for column in cells]
    least = list(widths)
    for i, column in enumerate(table.columns):
        if i and column.alignment == "left":
            longest = max((len(word) for text in cells[i] for word in text.split()), default=0)
            least[i] = max(longest, min(widths[i], SHORT))
    while sum(widths) + len(widths) - 1 > NUM_COLUMNS and widths != least:
        widest = max((i for i in range(len(widths)) if widths[i] > least[i]), key=widths.__getitem__)
        widths[widest] -= 1
    return widths


def _headings(table: Table) -> list[str]:
    """Headings flush at the bottom, in one line if the table is then narrow enough."""
    headings = [_heading(column) for column in table.columns]
    widths = [max((len(row[i].text) for row in table.rows), default=0) for i in range(len(headings))]
    if sum(map(max, widths, map(len, headings))) + len(headings) - 1 <= NUM_COLUMNS:
        return headings
    wrapped = [
        textwrap.wrap(heading, max(width, *map(len, heading.split())))
        for heading, width in zip(headings, widths, strict=True)
    ]
    height = max(map(len, wrapped))
    return ["\n".join([""] * (height - len(lines)) + lines) for lines in wrapped]


def _heading(column: Column) -> str:
    """The short heading, with its unit; GiB stands in the title."""
    unit = column.unit if column.unit != "GiB" else ""
    return f"{column.short or column.heading} {unit}".strip()


def _title(table: Table) -> str:
    unit = "GiB" if any(column.unit == "GiB" for column in table.columns) else ""
    notes = "; ".join(filter(None, (table.source, unit, table.note)))
    return f"{table.title} ({notes})" if notes else table.title
