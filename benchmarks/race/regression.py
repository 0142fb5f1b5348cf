"""What vramtune takes in the race, kept in `ours.json`, so that a change that makes it slower or larger is seen.

    .venv-nullcuda/bin/python -m benchmarks.race.regression           # once more, beside what is kept; fails if worse
    .venv-nullcuda/bin/python -m benchmarks.race.regression --keep    # what the last race found is kept from now on

Virtual seconds are the same each time: whatever differs is our doing, or a new version's of PyTorch or diffusers.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.race.report import most_taken_bytes
from benchmarks.race.rows import ROWS, Key, Row, bases, read
from benchmarks.race.start import Stable

KEPT = Path(__file__).with_name("ours.json")
MOST_SLOWER = 0.01
"""Of seconds; nothing else may be more at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """One case, and what it took."""

    pipeline: str
    link: str
    percent: int
    cap_bytes: int
    activation_bytes: int
    seconds: float
    first_seconds: float
    moved_bytes: int
    """To the card, in a steady call."""
    peak_bytes: int
    """Of the process on the card, in the first call or a steady one."""
    pinned_bytes: int
    num_mallocs: int
    """`cudaMalloc`, in a steady call."""

    @classmethod
    def of(cls, row: Row, activation_bytes: int) -> "Ours":
        """A finished run of vramtune's."""
        assert row.reason is None, row.reason
        assert row.key.percent is not None
        steady = row.found["counters"]
        return cls(
            pipeline=row.key.pipeline,
            link=row.key.link,
            percent=row.key.percent,
            cap_bytes=row.cap_bytes,
            activation_bytes=activation_bytes,
            seconds=round(row.seconds, 6),
            first_seconds=round(row.found["first_seconds"], 6),
            moved_bytes=steady["to_card_bytes"],
            peak_bytes=most_taken_bytes(row),
            pinned_bytes=steady["pinned_peak_bytes"],
            num_mallocs=steady["num_mallocs"],
        )

    @property
    def name(self) -> str:
        return f"{self.pipeline}, {self.percent}%, {self.link}"

    def again(self, stable: Stable) -> tuple["Ours", list[str]]:
        """The same case now, and what was predicted of it too far off."""
        key = Key(pipeline=self.pipeline, link=self.link, percent=self.percent, contestant="vramtune", knob="")
        row = stable.run(key, self.cap_bytes, self.activation_bytes)
        return Ours.of(row, self.activation_bytes), [f"{self.name}: {words}" for words in mispredicted(row)]

    def worse(self, now: "Ours") -> list[str]:
        """By what it is worse now, one sentence a figure."""
        return [
            f"{self.name}: {figure} {value - before:+.6g}, from {before:.6g} to {value:.6g} ({value / before - 1:+.2%})"
            for figure, allowed in FIGURES.items()
            if (value := getattr(now, figure)) > (before := getattr(self, figure)) * (1 + allowed)
        ]


FIGURES = {
    "seconds": MOST_SLOWER,
    "first_seconds": MOST_SLOWER,
    "moved_bytes": 0,
    "peak_bytes": 0,
    "pinned_bytes": 0,
    "num_mallocs": 0,
}
"""What must not become more, and by what share it may."""


MOST_OFF = {"seconds": 0.05, "peak_bytes": 0.005, "moved_bytes": 0.0}
"""How far a prediction may be from what was run, as a share."""


def mispredicted(row: Row) -> list[str]:
    """What the plan of a finished run said that was further off."""
    said = row.found["predicted"]
    ran = {"seconds": row.seconds, "peak_bytes": most_taken_bytes(row), "moved_bytes": said["measured"]["moved_bytes"]}
    return [
        f"{figure} predicted {said[figure]:.6g}, run {ran[figure]:.6g}"
        for figure, most in MOST_OFF.items()
        if abs(said[figure] - ran[figure]) > most * ran[figure]
    ]


def kept() -> list[Ours]:
    """The cases that are kept."""
    return [Ours(**each) for each in json.loads(KEPT.read_text())]


def keep(cases: Iterable[Ours]) -> None:
    """Keep these, a line each."""
    KEPT.write_text("[\n" + ",\n".join(json.dumps(asdict(each)) for each in cases) + "\n]\n")


def of_the_race(rows: dict[Key, Row]) -> list[Ours]:
    """Ours of all that has run."""
    known = bases(rows.values())
    return [
        Ours.of(row, known[key.pipeline, key.link].activation_bytes)
        for key, row in rows.items()
        if (key.contestant, key.knob) == ("vramtune", "") and not row.reason
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="keep what the last race has found, and run nothing")
    if parser.parse_args().keep:
        return keep(of_the_race(read(ROWS)))
    worse = []
    with Stable() as stable:
        for before in tqdm(kept(), unit="case"):
            now, off = before.again(stable)
            worse += before.worse(now) + off
            tqdm.write(f"{now.name}: {before.seconds:.4f} s before, {now.seconds:.4f} s now")
    return sys.exit("\n".join(worse)) if worse else None


if __name__ == "__main__":
    main()
