"""Nouns as the last line of a cell: compact HTML in notebooks, a few lines in IPython's terminal."""

from vramtune.reports.cards import Card, card
from vramtune.reports.templating import render
from vramtune.reports.terminal import card_text


def as_html(noun: object) -> str:
    """A noun as `card_html` of its card."""
    return card_html(card(noun))


def as_text(noun: object) -> str:
    """A noun in a few lines of plain text."""
    return card_text(card(noun))


def card_html(card: Card) -> str:
    """A fragment without scripts or anything to fetch, right on light and dark pages."""
    return render("card.html.jinja", card=card)
