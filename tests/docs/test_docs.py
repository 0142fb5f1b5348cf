import ast
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import typer

import vramtune
from docs.pictures import PICTURES
from tests.cli.cli_runner import run
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
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
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


def test_every_benchmark_is_in_the_index():
    linked = {Path(link).name for link in LINK.findall(PAGES["docs/README.md"])}
    commands = {
        path.name for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text(encoding="utf-8")
    }
    assert commands <= linked


OF_THE_RACE = ("race_seconds", "race_pinned")
"""Pictures that `python -m benchmarks.race.page` makes of the last race."""


def test_every_picture_can_be_made_again_is_shown_and_is_small():
    files = {path.stem: path.stat().st_size for path in (ROOT / "docs" / "img").iterdir()}
    shown = {Path(link).stem for page in PAGES for link in LINK.findall(PAGES[page]) if link.endswith(".png")}
    assert set(files) == {*PICTURES, *OF_THE_RACE} == shown
    assert max(files.values()) <= LARGEST_PICTURE_BYTES


@pytest.mark.parametrize("page", having("sh"))
def test_every_command_has_options_that_exist(page):
    known = typer.main.get_command(app).commands
    for line in COMMAND.findall("\n".join(blocks(page, "sh"))):
        _, command, *arguments = shlex.split(line, comments=True)
        known[command].make_context(command, arguments)  # parses; runs nothing


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_exists(page):
    targets = re.findall(r"^(\w+):", MAKEFILE, re.MULTILINE)
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


# ---------------------------------------------------------------------------------------------------
# What is shown is what is printed


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # a scheduler of diffusers
def test_the_readme_shows_what_the_demo_prints():
    (shown,) = (body for body in blocks("README.md", "") if body.startswith("Fits"))
    (command,) = re.findall(r"/vramtune (plan .*) --plot", MAKEFILE)
    result = run(*shlex.split(command))
    assert (result.stdout, result.exit_code) == (shown, 0), result.stderr


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_how_to_shows_what_its_check_in_ci_prints(tmp_path, monkeypatch, capsys):
    section = PAGES["docs/how-to.md"].partition("## JSON in CI")[2]
    (_, commands), (_, code), (_, shown), *_ = BLOCK.findall(section)
    monkeypatch.chdir(tmp_path)
    for line in commands.splitlines():
        command, file, told = re.fullmatch(r"vramtune (.+) > (\S+)( \|\| echo .*)?", line).groups()
        result = run(*shlex.split(command))
        Path(file).write_text(result.stdout)
        if told:
            print("exit code", result.exit_code)
    exec(code)
    assert capsys.readouterr().out == shown


PLANS = re.compile(
    r"^```sh\n((?:vramtune (?:plan|which) (?![^\n]*--report)[^>\n]*\n)+)```\n\n```text\n(.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
"""Shell blocks of nothing but plans and rankings, and the text behind them."""
LOOP = re.compile(
    r"^```sh\nfor (\w+) in ([^;]+); do vramtune ([^|]+) \| head -(\d+); done\n```\n\n```text\n(.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
"""A command for each value of a variable, of which the first lines are shown."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(("commands", "shown"), PLANS.findall(PAGES["docs/how-to.md"]))
def test_the_how_to_shows_what_its_commands_print(commands, shown):
    results = (run(*shlex.split(line)[1:]) for line in commands.splitlines())
    printed = iter([row for result in results for row in result.stdout.splitlines()])
    for row in shown.splitlines():
        assert row == "..." or row in printed, row  # in order: `in` goes past what it looks at


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(("name", "values", "command", "num_lines", "shown"), LOOP.findall(PAGES["docs/how-to.md"]))
def test_the_how_to_shows_what_its_loops_print(name, values, command, num_lines, shown):
    results = [run(*shlex.split(command.replace(f"${name}", value))) for value in values.split()]
    assert shown == "".join(
        line for result in results for line in result.stdout.splitlines(keepends=True)[: int(num_lines)]
    )
