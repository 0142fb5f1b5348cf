"""Traces that come with the package: of each catalog model's call as its model card has it. Nothing here needs torch."""

from importlib.resources import files
from importlib.resources.abc import Traversable

from vramtune.schema import Trace

FOLDER = "traces"
SUFFIX = ".trace"


def shipped_trace(name: str) -> Trace | None:
    """The trace of a catalog model, by the name of its entry; None where none came with this package."""
    file = shipped_file(name)
    return Trace.from_bytes(file.read_bytes(), is_ours=True) if file.is_file() else None


def shipped_file(name: str) -> Traversable:
    """Where it is, or would be."""
    return files("vramtune.catalog") / FOLDER / f"{name}{SUFFIX}"
