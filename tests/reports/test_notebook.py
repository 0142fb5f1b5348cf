import dataclasses
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
from IPython.core.formatters import DisplayFormatter

from tests.reports import examples, seen
from tests.reports.golden import check_golden
from tests.reports.test_html import Page
from vramtune.reports import notebook

PROFILE, PLAN = examples.sdxl(), examples.sdxl_plan()
MEASURED = seen.measurement(PLAN)
TUNED = type("Tuned", (seen.Tuned,), {"__module__": "vramtune.api"})
NOUNS = {
    "profile": PROFILE,
    "plan": PLAN,
    "comparison": examples.comparison(PLAN),
    "frontier": seen.frontier(PLAN),
    "timeline": seen.timeline(PROFILE, PLAN),
    "measurement": MEASURED,
    "tuned": TUNED(PROFILE, PLAN, MEASURED),
}


@pytest.fixture(scope="module")
def shell():
    """As much of an IPython shell as shows what the last line of a cell gives."""
    shell = SimpleNamespace(display_formatter=DisplayFormatter())
    notebook.register(shell)
    return shell


@pytest.mark.parametrize("name", NOUNS)
def test_the_last_line_of_a_cell_shows_itself(shell, name):
    shown, _ = shell.display_formatter.format(NOUNS[name])
    assert shown == {
        "text/html": notebook.as_html(NOUNS[name]),
        "text/plain": notebook.as_text(NOUNS[name]),
    }


def test_the_types_are_where_it_is_said():
    for module, name in notebook.SHOWN:
        assert getattr(import_module(module), name).__module__ == module


def test_what_is_not_registered_is_shown_as_before(shell):
    shown, _ = shell.display_formatter.format(PLAN.workload)
    assert shown == {"text/plain": repr(PLAN.workload)}


@pytest.mark.parametrize("name", ["plan", "comparison"])
def test_a_fragment_reads_as_it_did(name):
    check_golden(f"{name}.html", notebook.as_html(NOUNS[name]))


@pytest.mark.parametrize("name", NOUNS)
def test_a_fragment_is_small_and_needs_nothing_from_outside(name):
    fragment = notebook.as_html(NOUNS[name])
    page = Page(fragment)
    assert len(fragment) < 15_000
    assert not {"script", "img", "link", "html", "body"} & set(page.tags)
    assert not page.values("src") + page.values("href") + page.values("id")
    assert "url(" not in fragment
    assert "@import" not in fragment


def test_styles_touch_nothing_else_in_the_notebook():
    style = notebook.as_html(PLAN).split("<style>")[1].split("</style>")[0]
    selectors = [
        part for rule in style.split("}")[:-1] for part in rule.split("*/")[-1].split("{")[0].split(",")
    ]
    assert len(selectors) > 20
    assert all(selector.strip().startswith(".vramtune") for selector in selectors)


def test_names_are_escaped():
    plan = dataclasses.replace(PLAN, reasons=("<b>bold</b>",), device_name="<i>GPU</i>")
    assert not {"b", "i"} & set(Page(notebook.as_html(plan)).tags)


def test_registering_imports_nothing_of_weight():
    code = (
        "import sys; from unittest.mock import MagicMock\n"
        "from vramtune.reports import jupyter; notebook.register(MagicMock())\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "jinja2", "matplotlib", "pandas", "rich", "msgspec", "vramtune.schema", "IPython"}
    assert not heavy & set(done.stdout.split())
