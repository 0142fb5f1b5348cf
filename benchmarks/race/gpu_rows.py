"""What the race on a GPU has shown, and its tables."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.race.names import CONTESTANTS
from benchmarks.race.rows import Outcome
from benchmarks.results_file import table
from vramtune.units import GIB

LEGEND = """
Everyone in a process of its own; the allocator is refused what exceeds the cap less the context, and what tells a program
how much memory its GPU has tells it the cap. Weights are random, shapes, dtypes and kernels are the real model's.
*Seconds*: a steady call's, wall clock, from an idle GPU until it is idle again. *Peak*: most reserved by PyTorch's
allocator in the first or the steady call, and the context. *Page-locked*: by PyTorch's allocator and `cudaHostRegister`. *Told*: the share of
what activations took on the whole card that was told to those who must be told. *Predicted* is an estimate from this GPU's
measured rates; all else is measured. The best of each contestant's settings; what every run showed is in the JSON.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Outcome):
    """A contestant on a model under a cap."""

    model: str
    cap_bytes: int | None
    """None: the whole card."""
    contestant: str
    knob: str = ""
    share_told: float | None = None
    """None for those who need not be told."""
    found: dict[str, Any] = field(default_factory=dict, compare=False)
    """As `calls.py` has it."""

    @property
    def title(self) -> str:
        """The contestant and its settings."""
        settings = [self.knob] if self.knob else []
        settings += [f"told {self.share_told:g}"] if self.share_told else []
        return CONTESTANTS[self.contestant].title + (f" ({', '.join(settings)})" if settings else "")

    @property
    def peak_bytes(self) -> int:
        """Of the process."""
        return int(max(self.found[counted]["used_peak_bytes"] for counted in ("first_counters", "counters")))

    @property
    def activation_bytes(self) -> int:
        """Allocated at most beyond all weights, of a resident run."""
        return int(self.found["allocated_peak_bytes"] - sum(self.found["weights"].values()))

    @property
    def rank(self) -> tuple[bool, float]:
        return (True, 0.0) if self.reason else (False, self.seconds)


HEADER = [
    "contestant", "seconds", "x resident", "first call, s", "set-up, s", "peak GiB", "page-locked GiB", "cudaMallocs",
    "predicted, s", "predicted peak GiB",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the file holds."""

    header: list[str]
    """The tables' first lines: the GPU, the commands, machine and versions."""
    commands: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> "Result":
        """What a file holds."""
        known = json.loads(path.read_text())
        return cls(header=known["header"], commands=known["commands"], runs=[Run(**run) for run in known["runs"]])

    def save(self, path: Path) -> None:
        """Write the file, a line for each run."""
        runs = ",\n".join(json.dumps(asdict(run)) for run in self.runs)
        head = f'"header": {json.dumps(self.header)},\n"commands": {json.dumps(self.commands)}'
        path.write_text(f'{{{head},\n"runs": [\n{runs}\n]}}\n')

    def report(self) -> list[str]:
        """The tables' lines."""
        lines = [*self.header, *(f"- `{command}`" for command in self.commands), LEGEND]
        for runs, resident in self.places():
            lines += [
                f"## {runs[0].model}, {(runs[0].cap_bytes or 0) / GIB:.2f} GiB",
                "",
                f"Resident {resident.seconds:.3f} s, {resident.peak_bytes / GIB:.2f} GiB, on the whole card.",
                "",
                *table(HEADER, [cells(run, resident) for run in runs if not run.reason]),
                "",
                *(f"- Did not run: {run.title}: {run.reason}" for run in runs if run.reason),
                "",
            ]
        return lines

    def places(self) -> Iterator[tuple[list[Run], Run]]:
        """For each model and cap the best run of each contestant, fastest first, and the resident run."""
        resident = {run.model: run for run in self.runs if run.contestant == "resident" and not run.reason}
        order = list(dict.fromkeys(run.model for run in self.runs))
        capped = [run for run in self.runs if run.cap_bytes and run.model in resident]
        capped.sort(key=lambda run: (order.index(run.model), -(run.cap_bytes or 0), run.rank))
        for (model, _), group in groupby(capped, key=lambda run: (run.model, run.cap_bytes)):
            best: dict[str, Run] = {}
            for run in group:
                best.setdefault(run.contestant, run)
            yield list(best.values()), resident[model]


def cells(run: Run, resident: Run) -> list[str]:
    """One line of a table."""
    found, predicted = run.found, run.found.get("predicted")
    return [
        run.title,
        f"{run.seconds:.3f}",
        f"{run.seconds / resident.seconds:.2f}",
        f"{found['first_seconds']:.2f}",
        f"{found['setup_seconds']:.1f}",
        f"{run.peak_bytes / GIB:.2f}",
        f"{found['counters']['pinned_bytes'] / GIB:.2f}",
        str(found["counters"]["num_mallocs"]),
        f"{predicted['seconds']:.3f}" if predicted else "",
        f"{predicted['peak_bytes'] / GIB:.2f}" if predicted else "",
    ]
