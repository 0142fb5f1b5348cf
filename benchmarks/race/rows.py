"""What a run has shown, one line of JSON each, and what follows from it: caps, the bound, who counts."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.race.bound import Call
from vramtune.units import MIB

ROWS = Path(__file__).parents[2] / "build" / "race" / "rows.jsonl"
"""Of all runs that have finished, a line each."""
CONTEXT_BYTES = 100 * MIB
"""A smaller context for smaller pipelines."""
ROOMY_BYTES = 64 * 10**9
"""The card on which everything is resident and which tells what that takes."""
NUM_STEPS = 8
LINKS = {"pcie3x8": 6.5e9, "pcie4x8": 1.2e10, "pcie4x16": 2.4e10, "pcie5x16": 4.8e10}
"""Bytes per second of page-locked memory, each way."""
MOST_PAGEABLE_BYTES_PER_SECOND = 1e10
"""Pageable memory is copied at half of a link's rate, and never faster than a host fills its driver's buffers."""
CAPS = (100, 60, 40, 25)
"""Percent of what the pipeline takes when all of it is resident."""


class Outcome:
    """What is common to what a run has shown, on whichever card."""

    __slots__ = ()
    found: dict[str, Any]

    @property
    def reason(self) -> str | None:
        """Why it did not run, or None."""
        failed = self.found.get("failed")
        return f"{self.found.get('step', 'start')}: {failed}" if failed else None

    @property
    def seconds(self) -> float:
        """Of a steady call."""
        return float(self.found["seconds"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One run."""

    pipeline: str
    link: str
    percent: int | None
    """None: on the roomy card."""
    contestant: str
    knob: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(Outcome):
    """What it has shown."""

    key: Key
    cap_bytes: int
    found: dict[str, Any] = field(default_factory=dict)
    """As `calls.py` has it."""
    seen_at: str = ""
    """The other link of a run that was not made (`foregone`)."""

    def as_json(self) -> str:
        return json.dumps({"key": asdict(self.key), "cap_bytes": self.cap_bytes, "found": self.found})

    @property
    def is_for_good(self) -> bool:
        """Whether it raised an error that says nothing of memory (and neither took too long nor lost its process)."""
        return self.reason is not None and "step" in self.found and "OutOfMemoryError" not in self.reason

    @classmethod
    def of_json(cls, line: str) -> "Row":
        known = json.loads(line)
        return cls(key=Key(**known["key"]), cap_bytes=known["cap_bytes"], found=known["found"])


def read(path: Path) -> dict[Key, Row]:
    """The rows of a file, the last of each run."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {row.key: row for row in map(Row.of_json, lines)}


def foregone(rows: Iterable[Row], keys: Iterable[Key]) -> dict[Key, Row]:
    """Of these runs those that need not be made: they failed at another link, and for no lack of memory, which no link changes.

    Copies on their way hold memory for as long as the link takes, so what was out of memory is tried at each.
    """
    failed = {replace(row.key, link=""): row for row in rows if row.is_for_good}
    known = {key: failed.get(replace(key, link="")) for key in keys}
    return {key: replace(row, key=key, seen_at=row.key.link) for key, row in known.items() if row is not None}


def pageable_bytes_per_second(link: str) -> float:
    """Of a link."""
    return min(LINKS[link] / 2, MOST_PAGEABLE_BYTES_PER_SECOND)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A pipeline with all of its weights on a card that has room for them."""

    row: Row
    bounds: dict[int, float] = field(default_factory=dict, compare=False)
    """What is known of `bound_seconds`, by cap."""

    @property
    def peak_bytes(self) -> int:
        """What the process takes of the card."""
        return max(self.row.found[counted]["used_peak_bytes"] for counted in ("first_counters", "counters"))

    @property
    def weights(self) -> dict[str, int]:
        return dict(self.row.found["weights"])

    @property
    def activation_bytes(self) -> int:
        """What the call takes beyond the weights."""
        return self.peak_bytes - CONTEXT_BYTES - sum(self.weights.values())

    def cap_bytes(self, percent: int) -> int:
        """The memory of a card with that share of the peak; the context is not shared."""
        return CONTEXT_BYTES + (self.peak_bytes - CONTEXT_BYTES) * percent // 100 + 2 * MIB

    def bound_seconds(self, row: Row) -> float:
        """No contestant's steady call can be shorter (`bound.py`)."""
        if row.cap_bytes not in self.bounds:
            room_bytes, rate = row.cap_bytes - CONTEXT_BYTES, LINKS[self.row.key.link]
            self.bounds[row.cap_bytes] = Call.of(self.row.found["call"]).least_seconds(room_bytes, rate)
        return self.bounds[row.cap_bytes]


def bases(rows: Iterable[Row]) -> dict[tuple[str, str], Base]:
    """By pipeline and link."""
    return {(row.key.pipeline, row.key.link): Base(row=row) for row in rows if row.key.percent is None}


def best(rows: Iterable[Row]) -> list[Row]:
    """Of each contestant, pipeline, link and cap the fastest run; one that failed where all did."""
    chosen: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = row.key
        if key.percent is None:
            continue
        place = (key.pipeline, key.link, -key.percent, key.contestant)
        known = chosen.get(place)
        if known is None or _rank(row) < _rank(known):
            chosen[place] = row
    return sorted(
        chosen.values(), key=lambda row: (row.key.pipeline, row.key.link, -(row.key.percent or 0), _rank(row))
    )


def _rank(row: Row) -> tuple[bool, float]:
    return (True, 0.0) if row.reason else (False, row.seconds)
