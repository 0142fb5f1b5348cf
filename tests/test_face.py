"""The public face, and what must not be imported behind it."""

import subprocess
import sys

import pytest

import vramtune

HEAVY = {"torch", "diffusers", "accelerate", "transformers"}


def imported_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_every_public_name_is_there() -> None:
    assert all(getattr(vramtune, name) is not None for name in vramtune.__all__)
    assert dir(vramtune) == sorted(vramtune.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="autotuna"):
        vramtune.autotuna  # noqa: B018


def test_importing_the_package_imports_nothing_else_of_weight() -> None:
    assert not imported_by("import vramtune") & {*HEAVY, "scipy", "numpy", "matplotlib", "rich", "msgspec"}


@pytest.mark.parametrize("module", ["schema", "api", "cli", "tuner.search", "tuner.stock_modes", "reports.terminal"])
def test_plans_and_reports_need_no_torch(module: str) -> None:
    assert not imported_by(f"import vramtune.{module}") & HEAVY


def test_the_command_line_starts_light() -> None:
    assert not imported_by("import vramtune.cli") & {*HEAVY, "scipy", "numpy", "matplotlib", "pandas"}
