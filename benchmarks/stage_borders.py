"""What could be won if weights came in before the stage that needs them begins: earlier in the call, or in the last one.

    python -m benchmarks.stage_borders            # writes results/stage_borders_<date>.md; seconds

For the catalog's models as they come, and with eight steps where that is the same call. A plan has what a stage keeps copied
as the stage runs; here each is set beside the same plan with all of that there when its stage begins, so that nothing is
waited for but what is streamed. In the call, no more counts than the stages before leave to the link and to memory. All
figures are predicted, and both are more than any plan could win.
"""

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.results_file import environment, table, write_result
from vramtune import catalog, price
from vramtune.catalog.shipped import shipped_trace
from vramtune.errors import BudgetError, UsageError
from vramtune.schema import Trace
from vramtune.tuner.budget import MARGIN_FRACTION
from vramtune.tuner.local_search import Candidate
from vramtune.tuner.schedule import Residency, moved_bytes, stage_seconds
from vramtune.tuner.search import choose_plan
from vramtune.tuner.simulate import recall
from vramtune.units import GIB

CARDS = (("RTX 4060", 7), ("RTX 4070", 10), ("RTX 4090", 12), ("RTX 4090", 20))
FEW_STEPS = 8
MOST_ROWS = 20
HEADER = ["model", "card, GiB", "seconds", "won in the call, at most", "with what the last call leaves, at most"]


class Row(NamedTuple):
    """A plan, and the shares of its seconds that could be won."""

    model: str
    card: str
    seconds: float
    in_call: float
    from_last_call: float


def main() -> None:
    """Plan all of them and write the table."""
    rows = sorted((row for entry in catalog.models() for row in of_model(entry.name)), key=lambda row: -row.in_call)
    inside, across = sorted(row.in_call for row in rows), sorted(row.from_last_call for row in rows)
    lines = [
        "# What loading weights before their stage could win, predicted",
        "",
        *environment("python -m benchmarks.stage_borders"),
        "",
        f"{len(rows)} plans that move weights. In the call: at most {inside[-1]:.2%}, at the median {inside[len(rows) // 2]:.4%}.",
        f"With weights that stay on the GPU from one call to the next: at most {across[-1]:.2%}, at the median "
        f"{across[len(rows) // 2]:.2%}.",
        "",
        f"The {MOST_ROWS} with most to win in the call:",
        "",
        *table(HEADER, [cells(row) for row in rows[:MOST_ROWS]]),
    ]
    print(*lines, write_result("stage_borders", lines), sep="\n")


def of_model(name: str) -> Iterator[Row]:
    """Its call as it comes, and with few steps."""
    trace = shipped_trace(name)
    if trace is None:
        return
    yield from of_trace(name, trace)
    if FEW_STEPS in trace.exact_steps:
        yield from of_trace(f"{name}, {FEW_STEPS} steps", trace.with_steps(FEW_STEPS))


def of_trace(model: str, trace: Trace) -> Iterator[Row]:
    """A row for each card and budget that it fits, but not whole."""
    for gpu, budget_gib in CARDS:
        profile = price(trace, gpu)
        try:
            plan = choose_plan(profile, budget_gib * GIB, margin_fraction=MARGIN_FRACTION)
        except (BudgetError, UsageError):
            continue
        if plan.estimate.moved_bytes:
            free_bytes = int(plan.budget_bytes * (1 - MARGIN_FRACTION))
            yield Row(model, f"{gpu}, {budget_gib}", plan.estimate.seconds, *shares(recall(profile, plan), free_bytes))


def shares(candidate: Candidate, target_bytes: int) -> tuple[float, float]:
    """Of its seconds, what could be won in the call, and with the last one's end."""
    problem, total, inside, across = candidate.problem, 0.0, 0.0, 0.0
    rate = problem.copy_bytes_per_second
    idle_seconds: list[float] = []
    """Of the link, by stage."""
    for s, stage in enumerate(problem.stages):
        residencies = candidate.residencies(s)
        seconds = stage_seconds(problem, stage, residencies)
        waited = seconds - stage_seconds(problem, stage, there(residencies))
        total += seconds
        across += waited
        earlier, room_bytes = 0.0, target_bytes
        for before in reversed(range(s)):  # what comes in there is held until here
            room_bytes = min(room_bytes, max(target_bytes - candidate.stage_bytes(before), 0))
            earlier += min(idle_seconds[before], room_bytes / rate)
        inside += min(waited, earlier)
        idle_seconds.append(max(seconds - moved_bytes(problem, stage, residencies) / rate, 0.0))
    return inside / total, across / total


def there(residencies: dict[int, Residency]) -> dict[int, Residency]:
    """The same, with all that is kept on the GPU when the stage begins."""
    return {unit: each._replace(present=each.kept) for unit, each in residencies.items()}


def cells(row: Row) -> list[str]:
    return [row.model, row.card, f"{row.seconds:.2f}", f"{row.in_call:.3%}", f"{row.from_last_call:.2%}"]


if __name__ == "__main__":
    main()
