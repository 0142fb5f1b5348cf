import ast
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import typer

import vramtune
from docs.pictures import PICTURES
from vramtune.cli import app

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "notebooks" / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
LARGEST_PICTURE_BYTES = 110_000

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"\bvramtune [^|;>&\n]+")
TARGET = re.compile(r"\bmake ([a-z]+)\b(?=`| *#| *$)", re.MULTILINE)


def blocks(page: str, language: str) -> list[str]:
    return [body for found, body in BLOCK.findall(PAGES[page]) if found == language]


def prose(page: str) -> str:
    return BLOCK.sub("", PAGES[page])


def having(language: str) -> list[str]:
    return [page for page in PAGES if blocks(page, language)]


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in HEADING.findall(text)}


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page):
    for link in LINK.findall(prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_of_docs_is_in_the_index():
    linked = set(LINK.findall(PAGES["docs/README.md"]))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= linked


def test_every_picture_can_be_made_again_is_shown_and_is_small():
    files = {path.stem: path.stat().st_size for path in (ROOT / "docs" / "img").iterdir()}
    shown = {Path(link).stem for page in PAGES for link in LINK.findall(PAGES[page]) if link.endswith(".png")}
    assert set(files) == set(PICTURES) == shown
    assert max(files.values()) <= LARGEST_PICTURE_BYTES


@pytest.mark.parametrize("page", having("sh"))
def test_every_command_has_options_that_exist(page):
    known = typer.main.get_command(app).commands
    for line in COMMAND.findall("\n".join(blocks(page, "sh"))):
        _, command, *arguments = shlex.split(line, comments=True)
        known[command].make_context(command, arguments)  # parses; runs nothing


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_exists(page):
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = TARGET.findall("\n".join([*re.findall(r"`[^`\n]+`", prose(page)), *blocks(page, "sh")]))
    assert set(named) <= set(targets)


@pytest.mark.parametrize("page", having("python"))
def test_every_python_snippet_compiles_and_names_what_exists(page):
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            match node:
                case ast.ImportFrom(module=str(module), names=names) if module.startswith("vramtune"):
                    assert all(hasattr(import_module(module), alias.name) for alias in names)
                case ast.Attribute(value=ast.Name(id="vramtune"), attr=name):
                    assert name in vramtune.__all__
                case ast.Attribute(value=ast.Name(id="plots"), attr=name):
                    assert name in import_module("vramtune.reports.plots").__all__
