"""Where results go, and what must stand in each: the command, the machine, the versions."""

import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("vramtune", "torch", "diffusers", "transformers", "accelerate", "highspy")


def environment(command: str, *, gpu: str = "no GPU used") -> list[str]:
    """Lines that say how a result came about."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return [
        f"- Command: `{command}`",
        f"- Date: {date.today().isoformat()}",
        f"- Machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {gpu}",
        f"- Versions: {versions}",
    ]


def result_path(name: str) -> Path:
    """`results/<name>_<date>.md`."""
    return RESULTS / f"{name}_{date.today().isoformat()}.md"


def write_result(name: str, lines: list[str]) -> Path:
    """Write `results/<name>_<date>.md`."""
    path = result_path(name)
    path.write_text("\n".join(lines) + "\n")
    return path


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table; every column but the first is flush right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in [header, rule, *rows]]
