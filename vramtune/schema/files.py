"""Nouns as JSON, with their kind and the schema version around them."""

from pathlib import Path
from typing import Self, TypeVar

import msgspec

from vramtune.errors import FileError

SCHEMA_VERSION = 3
"""3: nouns carry their figures (a stage's parts of the peak, reasons as data, whose comparison it is)."""

Noun = TypeVar("Noun")


def to_json(noun: object) -> bytes:
    """A noun as JSON, with its kind and the schema version around it."""
    envelope = {"kind": type(noun).__name__, "schema_version": SCHEMA_VERSION, "body": noun}
    return msgspec.json.format(msgspec.json.encode(envelope), indent=1) + b"\n"


def from_json(kind: type[Noun], text: bytes | str) -> Noun:
    """The noun of that kind that `to_json` wrote; `FileError` says what else the text is."""
    name = kind.__name__
    try:
        envelope = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        written = msgspec.json.decode(envelope["kind"], type=str)
        version = msgspec.json.decode(envelope["schema_version"], type=int)
        body = envelope["body"]
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise FileError(f"Expected a vramtune {name}; this is not a vramtune file: {reason}.") from error
    if written != name:
        raise FileError(f"Expected a vramtune {name}; this file holds a {written}.")
    if version != SCHEMA_VERSION:
        raise FileError(
            f"This {name} has schema version {version}; this vramtune reads version {SCHEMA_VERSION}. Make a new one."
        )
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise FileError(f"This {name} is damaged: {error}.") from error


def read_file(path: str | Path) -> bytes:
    """Bytes of a file; raises a `FileError` that names it where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FileError(f"Cannot read {str(path)!r}: {error.strerror}.") from error


def write_file(path: str | Path, content: bytes) -> None:
    """Write a file; raises a `FileError` that names it where that cannot be done."""
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise FileError(f"Cannot write {str(path)!r}: {error.strerror}.") from error


class Saved:
    """A noun that can be kept in a file."""

    __slots__ = ()

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
