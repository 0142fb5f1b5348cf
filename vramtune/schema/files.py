"""Nouns as JSON, with their kind and the schema version around them; and how files are read and written at all."""

import os
import secrets
import stat
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from vramtune.errors import FileError, UsageError
from vramtune.printable import printable

SCHEMA_VERSION = 8
"""8: profiles say what activations take under each limit."""
MAX_FILE_BYTES = 2**26
"""Largest file that is read: a profile of the largest pipeline takes a few MiB."""

Noun = TypeVar("Noun")


def to_json(noun: object) -> bytes:
    """A noun as JSON, with its kind and the schema version around it."""
    envelope = {"kind": type(noun).__name__, "schema_version": SCHEMA_VERSION, "body": noun}
    return msgspec.json.format(msgspec.json.encode(envelope), indent=1) + b"\n"


def from_json(kind: type[Noun], text: bytes | str) -> Noun:
    """The noun of that kind that `to_json` wrote; `FileError` says what else the text is.

    Names in it are fit for a terminal (`printable`), whoever wrote them.
    """
    name = kind.__name__
    try:
        envelope = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        written = msgspec.json.decode(envelope["kind"], type=str)
        version = msgspec.json.decode(envelope["schema_version"], type=int)
        body = envelope["body"]
    except (msgspec.MsgspecError, UnicodeError, KeyError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else _brief(error)
        raise FileError(f"Expected a vramtune {name}; this is not a vramtune file: {reason}.") from error
    if written != name:
        raise FileError(f"Expected a vramtune {name}; this file holds a {_brief(written)}.")
    if version != SCHEMA_VERSION:
        raise FileError(
            f"This {name} has schema version {version}; this vramtune reads version {SCHEMA_VERSION}. Make a new one."
        )
    try:
        noun = msgspec.convert(_printable(msgspec.json.decode(body)), type=kind)
        if isinstance(noun, Saved):
            noun.check()
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FileError(f"This {name} is damaged: {_brief(error)}.") from error
    return noun


def _brief(quoted: object, *, longest: int = 300) -> str:
    """What an error says, which may quote a whole file."""
    words = str(quoted)
    return words if len(words) <= longest else f"{words[:longest]}..."


def _printable(value: Any) -> Any:
    """What JSON holds, with every name and text in it fit for a terminal."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_printable(each) for each in value]
    if isinstance(value, dict):
        return {printable(name): _printable(each) for name, each in value.items()}
    return value


def checked_path(path: object) -> Path:
    """A path as the user gave it; a `UsageError` for what is none."""
    if not isinstance(path, str | os.PathLike) or not isinstance(name := os.fspath(path), str) or not name:
        raise UsageError(f"A file is named by a str or a Path; got {path!r}.")
    return Path(name)


def read_file(path: str | Path, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Bytes of a file; raises a `FileError` that names it where it cannot be read, is no file or is too large for one.

    What is not a regular file (a pipe, a device) is not opened: it might never end.
    """
    file = checked_path(path)
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise FileError(f"Cannot read {str(file)!r}: {'a folder' if file.is_dir() else 'not a regular file'}.")
        if status.st_size > max_bytes:
            raise FileError(f"Cannot read {str(file)!r}: {status.st_size} bytes; at most {max_bytes} are expected.")
        return file.read_bytes()
    except FileError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        raise FileError(f"Cannot read {str(file)!r}: {_reason(error)}.") from error


def write_file(path: str | Path, content: bytes) -> None:
    """Write a file; raises a `FileError` that names it where that cannot be done.

    It is written beside the old one and moved into its place when it is whole: a full disk or an interrupt leaves the
    old one. A link stays a link, and keeps its mode. What is not a regular file (a pipe, a device) is written to.
    """
    file = checked_path(path)
    try:
        target = file.resolve()
        if target.exists() and not target.is_file():
            target.write_bytes(content)
        else:
            _replace(target, content)
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links is a RuntimeError
        raise FileError(f"Cannot write {str(file)!r}: {_reason(error)}.") from error


def make_folder(path: str | Path) -> Path:
    """Make a folder where there is none, and return it; raises a `FileError` that names it where that cannot be done."""
    folder = checked_path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise FileError(f"Cannot write the folder {str(folder)!r}: {_reason(error)}.") from error
    return folder


def _replace(file: Path, content: bytes) -> None:
    # a name of its own length: the file's may be as long as names can be
    beside = file.with_name(f".vramtune-{secrets.token_hex(8)}")
    try:
        with beside.open("xb") as stream:
            if file.exists():
                beside.chmod(stat.S_IMODE(file.stat().st_mode))
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


class Saved:
    """A noun that can be kept in a file."""

    __slots__ = ()

    def check(self) -> None:
        """Raise a `ValueError` for parts that do not belong together: what is read from a file may be anything."""

    def save(self, path: str | Path) -> None:
        """Write it as JSON; raises a `FileError` that names the file where that cannot be done."""
        write_file(path, to_json(self))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; raises a `FileError` that names the file if it is anything else."""
        text, name = read_file(path), cls.__name__
        try:
            return from_json(cls, text)
        except FileError as error:
            raise FileError(
                f"Cannot load {str(path)!r}: {error} `vramtune {name.lower()} --save` writes a {name}."
            ) from error
