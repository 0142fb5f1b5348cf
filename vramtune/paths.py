"""Names of files and folders as people type them: asking about one never fails, whatever it is. And our own folder."""

import os
from pathlib import Path


def user_path(path: str | Path) -> Path:
    """The path with `~` as the user's own folder; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_there(path: str | Path) -> bool:
    """Whether a file or folder has that name; no name is too long to ask, or impossible."""
    return os.path.exists(user_path(path))  # noqa: PTH110 - pathlib raises for names that are too long


def is_folder(path: str | Path) -> bool:
    """The same of a folder."""
    return os.path.isdir(user_path(path))  # noqa: PTH112


def cache_folder() -> Path:
    """Where we keep things: what `VRAMTUNE_CACHE` names, else the user's cache folder (`~/.cache/vramtune` on Linux)."""
    import platformdirs  # which takes its time, and is needed where something is kept

    return Path(os.environ.get("VRAMTUNE_CACHE") or platformdirs.user_cache_path("vramtune"))
