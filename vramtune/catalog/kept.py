"""Traces that were made on this machine, kept in the user's cache folder by all that they depend on.

A trace depends on the model's files, the call, the libraries' versions and our own code: whoever changes one of these gets
a new one. Who deletes the files loses some seconds.
"""

import hashlib
import logging
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

import msgspec

from vramtune.errors import FileError
from vramtune.paths import cache_folder
from vramtune.schema import Trace

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")
MOST_FILES = 100
"""The oldest go first; one takes 20 to 400 KB."""
READ_BYTES = 2**20
"""Files of a model up to this size count by their content (configurations), larger ones (weights) by size and time."""

logger = logging.getLogger(__name__)


def name_of(model: str, folder: Path | None, call: Mapping[str, object]) -> str:
    """The name under which the trace of a model's call is kept; `folder` holds the model, where it is not the catalog's."""
    digest = hashlib.sha256(msgspec.json.encode([model, dict(call), *map(_version, LIBRARIES), own_code()]))
    for path in sorted(folder.rglob("*")) if folder is not None else ():
        if path.is_file():
            status = path.stat()
            facts = path.read_bytes() if status.st_size <= READ_BYTES else str(status.st_mtime_ns).encode()
            digest.update(f"{path.relative_to(folder or path)} {status.st_size} ".encode() + facts)
    return digest.hexdigest()[:32]


def kept_trace(name: str) -> Trace | None:
    """What was kept under a name; None where nothing was, or its file is damaged."""
    path = _path(name)
    try:
        return Trace.load(path) if path.exists() else None
    except (OSError, FileError) as error:  # OSError: a folder that may not be looked into
        logger.debug("not read: %s", error)
        return None


def keep(name: str, trace: Trace) -> None:
    """Keep a trace; where nothing can be written, nothing is kept."""
    path = _path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        trace.save(path)
        oldest_last = sorted(path.parent.glob("*.trace"), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in oldest_last[MOST_FILES:]:
            file.unlink(missing_ok=True)
    except (OSError, FileError) as error:
        logger.debug("not kept: %s", error)


def _path(name: str) -> Path:
    return cache_folder() / "traces" / f"{name}.trace"


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


@cache
def own_code() -> str:
    """Of the package as it is: its version says little while it is worked on."""
    root = Path(str(files("vramtune")))
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
