"""Files that a command is asked to write: refused before anything takes time, or written."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vramtune.errors import FileError, UsageError
from vramtune.paths import user_path
from vramtune.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

JSON = ("json",)
HTML = ("html", "htm")


def picture_formats() -> tuple[str, ...]:
    """Formats that `--plot` can write."""
    from vramtune.reports.plots import FORMATS

    return FORMATS


def check_path(path: Path | None, *, option: str, formats: Sequence[str]) -> None:
    """Refuse a file whose name ends in no known format, or that could not be written."""
    if path is None:
        return
    if path.suffix.lstrip(".").lower() not in formats:
        raise UsageError(f"{option}: {str(path)!r} must end in .{' or .'.join(formats)}.")
    try:
        _check_place(path.resolve(), f"{option}: {str(path)!r}")
    except UsageError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a loop of links
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{option}: {str(path)!r} cannot be written; {reason}.") from error


def _check_place(path: Path, called: str) -> None:
    if path.is_dir():
        raise UsageError(f"{called} is a folder; name a file.")
    if not path.parent.is_dir():
        raise UsageError(f"{called} cannot be written; there is no folder {str(path.parent)!r}.")
    # a file is written beside the old one, which it then replaces; a device or a pipe is written to
    needed = [path] if path.exists() else []
    if path.is_file() or not needed:
        needed.append(path.parent)
    if not all(os.access(place, os.W_OK) for place in needed):
        raise UsageError(f"{called} cannot be written; permission denied.")


def check_apart(named: Mapping[str, Path | None]) -> None:
    """Refuse a file that is named twice (`named` by argument): what is written last would be all that is left."""
    first_of: dict[Path, str] = {}
    for argument, path in named.items():
        if path is None:
            continue
        first = first_of.setdefault(_resolved(path), argument)
        if first != argument:
            raise UsageError(f"{argument}: {first} already names {str(path)!r}; name another file.")


def _resolved(path: Path) -> Path:
    try:
        return user_path(path).resolve()
    except (OSError, ValueError, RuntimeError):  # which is said where it is read
        return path


def check_plot(path: Path | None) -> None:
    """The same for a picture; matplotlib is asked only where there is one."""
    if path is not None:
        check_path(path, option="--plot", formats=picture_formats())


def save_plot(axes: "Axes", path: Path) -> None:
    """Write the picture that these axes are on."""
    from vramtune.reports.plots import save

    save(axes, path)


def write(path: Path | None, writing: Callable[[Path], object], *, option: str, show: Callable[[str], None]) -> None:
    """Write a file, if it was asked for; a `FileError` says what the system refuses."""
    if path is None:
        return
    show(f"Writing {path}")
    try:
        writing(path)
    except FileError as error:
        raise FileError(f"{option}: {error}") from error
    except OSError as error:
        raise FileError(f"{option}: {str(path)!r} cannot be written; {error.strerror}.") from error


def warn_unwritten(*paths: Path | None) -> None:
    """Say that there is nothing to write."""
    if asked := [str(path) for path in paths if path is not None]:
        typer.echo(printable(f"Nothing fits, so not written: {', '.join(asked)}."), err=True)
