"""A page or fragment of HTML, read: tags, attributes, words, tables."""

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """What is on a page; refuses tags that do not close in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def values(self, name):
        return [value for attribute, value in self.attributes if attribute == name]


def words(text):
    """The page without its head, pictures and tags."""
    body = re.sub(r"<svg.*?</svg>", "", text[text.index("<body") :], flags=re.DOTALL)
    return " ".join(" ".join(Page(f"<html>{body}").text).split())


def tables(text):
    """The tables by title: rows by name, each a dict from heading to text."""
    by_title = {}
    for title, table in re.findall(r'<table class="grid" aria-label="([^"]*)">(.*?)</table>', text, re.DOTALL):
        head, *rows = (
            ["".join(Page(cell).text) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
            for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)
        )
        headings = [heading.removesuffix(" GiB") for heading in head]
        by_title[title] = {row[0]: dict(zip(headings, row, strict=True)) for row in rows}
    return by_title
