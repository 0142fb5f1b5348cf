"""How near a stage whose weights come from a disk is to its slowest engine: compute, copies, staging, or reading.

    python -m benchmarks.from_disk            # writes results/from_disk_<date>.md; a minute

For the catalog's models as they come, with all weights in files and less of the host's memory than they take. Counted are
stages in which one component brings in at least sixteen groups: in one iteration all that were not there, in several those that
are streamed. All figures are predicted; `tests/offload/test_disk.py` holds such predictions to calls on a virtual disk.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from tqdm import tqdm

from benchmarks.results_file import environment, table, write_result
from vramtune import catalog
from vramtune.catalog.shipped import shipped_trace
from vramtune.errors import BudgetError
from vramtune.machine.gpus import find_gpu
from vramtune.predict import price_model
from vramtune.schema import Plan, Profile, StageEstimate
from vramtune.tuner.local_search import Candidate
from vramtune.tuner.schedule import moved_bytes, reading_seconds, staging_seconds
from vramtune.tuner.search import choose_plan
from vramtune.tuner.simulate import recall
from vramtune.units import GIB

HOSTS = (("RTX 4060", 8, 8), ("RTX 4060", 8, 16), ("RTX 4060 Ti 16GB", 16, 16), ("RTX 4090", 24, 32))
"""GPU, GiB of its memory, GiB of the host's."""
STORAGE_BYTES_PER_SECOND = 5e9
"""An NVMe drive on PCIe 4."""
LEAST_GROUPS, MOST_TIMES_SLOWEST = 16, 1.10
HEADER = ["model", "GPU, its GiB, the host's", "stage", "iterations", "seconds", "by its slowest engine"]


class Row(NamedTuple):
    """A stage, and how many times its slowest engine it takes."""

    model: str
    host: str
    stage: str
    num_iterations: int
    seconds: float
    times_slowest: float


def main() -> None:
    """Plan all of them and write the table."""
    models = tqdm([entry.name for entry in catalog.models()], unit="model")
    rows = sorted((row for name in models for row in of_model(name)), key=lambda row: -row.times_slowest)
    within = [row for row in rows if row.times_slowest <= MOST_TIMES_SLOWEST]
    lines = [
        "# Stages whose weights come from a disk, by their slowest engine, predicted",
        "",
        *environment("python -m benchmarks.from_disk"),
        f"- Storage: {STORAGE_BYTES_PER_SECOND / 1e9:g} GB/s",
        "",
        f"{len(within)} of {len(rows)} stages that bring in {LEAST_GROUPS} groups or more take at most {MOST_TIMES_SLOWEST:.2f} "
        "times what compute, copies,",
        "staging or reading takes alone. The others:",
        "",
        *table(HEADER, [cells(row) for row in rows if row not in within]),
    ]
    print(*lines, write_result("from_disk", lines), sep="\n")


def of_model(name: str) -> Iterator[Row]:
    """A row for each such stage on each host that it fits, but not whole."""
    trace = shipped_trace(name)
    if trace is None:
        return
    for gpu, vram_gib, ram_gib in HOSTS:
        device = replace(find_gpu(gpu), storage_bytes_per_second=STORAGE_BYTES_PER_SECOND, storage_source="given")
        profile = price_model(trace, device)
        try:
            plan = choose_plan(profile, vram_gib * GIB, ram_bytes=ram_gib * GIB)
        except BudgetError:
            continue
        if plan.estimate.file_bytes:
            host = f"{gpu}, {vram_gib}, {ram_gib}"
            for stage, times_slowest in stages_with_many_groups(profile, plan):
                yield Row(name, host, stage.name, stage.num_iterations, stage.seconds, times_slowest)


def stages_with_many_groups(profile: Profile, plan: Plan) -> Iterator[tuple[StageEstimate, float]]:
    """The stages that count, and their seconds by those of the slowest engine."""
    candidate = recall(profile, plan)
    for s, stage in enumerate(plan.estimate.stages):
        if num_brought_in(candidate, s) >= LEAST_GROUPS:
            yield stage, stage.seconds / slowest_engine_seconds(candidate, s)


def num_brought_in(candidate: Candidate, s: int) -> int:
    """Groups of one component that come in in each iteration of a stage, of whichever has most."""
    is_once = candidate.problem.stages[s].num_iterations == 1
    return max(
        len(candidate.problem.units[u].groups) - (residency.present if is_once else residency.kept)
        for u, residency in candidate.residencies(s).items()
    )


def slowest_engine_seconds(candidate: Candidate, s: int) -> float:
    """What takes longest in a stage where nothing waits for anything: compute, copies, staging, or reading."""
    problem, stage, active = candidate.problem, candidate.problem.stages[s], candidate.residencies(s)
    compute = stage.num_iterations * stage.compute_seconds
    copies = moved_bytes(problem, stage, active) / problem.copy_bytes_per_second
    return max(compute, copies, staging_seconds(problem, stage, active), reading_seconds(problem, stage, active))


def cells(row: Row) -> list[str]:
    return [row.model, row.host, row.stage, str(row.num_iterations), f"{row.seconds:.3f}", f"{row.times_slowest:.3f}"]


if __name__ == "__main__":
    main()
