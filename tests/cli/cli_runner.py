"""The command line as a test runs it: in this process, with its output caught."""

from pathlib import Path

from typer.testing import CliRunner

from tests.reports import golden
from vramtune.cli import app

GOLDEN = Path(__file__).parent / "golden"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def refused(result, *said):
    """Wrong usage: exit code 2, said on stderr, no traceback, nothing on stdout."""
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for words in said:
        assert words in result.stderr


def check_text(name, found):
    """Plain text of 80 columns, that of the file; `VRAMTUNE_REMAKE_GOLDEN=1 pytest tests/cli` writes them anew."""
    assert "\x1b" not in found
    assert max(map(len, found.splitlines())) <= 80
    golden.check_golden(name, found, folder=GOLDEN)
