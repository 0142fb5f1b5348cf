"""Texts that are compared with files, byte by byte; `VRAMTUNE_REMAKE_GOLDEN=1 pytest tests/reports` writes them anew."""

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"


def check_golden(name: str, found: str, *, folder: Path = FOLDER) -> None:
    """The text is that of the file."""
    path = folder / name
    if os.environ.get("VRAMTUNE_REMAKE_GOLDEN"):
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")
