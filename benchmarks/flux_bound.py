"""Why FLUX.1 in little memory is far above the bound: no plan could come near it.

    python -m benchmarks.flux_bound

When a stretch of visits begins, at most what the budget leaves for weights of it can be on the GPU, kept or in slots.
The rest has to be copied while the stretch lasts, and the other visits take their compute: a bound for each stretch,
the highest of which holds for every plan. All figures are predicted.
"""

from benchmarks.results_file import environment, table, write_result
from vramtune import api, catalog
from vramtune.tuner.problem import pose
from vramtune.units import GIB

BUDGETS = (4, 5, 6, 8)
HEADER = ["budget GiB", "plan, s per step", "bound of stretches", "above it", "plain bound", "above it"]


def main() -> None:
    """Plan FLUX.1 for an RTX 4090 at each budget and write the table."""
    profile = api.profile(catalog.load("flux.1-dev"), gpu="RTX 4090", progress=False)
    lines = [
        "# FLUX.1 [dev] on an RTX 4090: one step of the transformer, predicted",
        "",
        *environment("python -m benchmarks.flux_bound"),
        "",
        *table(HEADER, [row(profile, budget) for budget in BUDGETS]),
    ]
    print(write_result("flux_bound", lines))


def row(profile, budget: int) -> list[str]:
    problem = pose(profile)
    s = next(s for s, stage in enumerate(problem.stages) if stage.name == "transformer")
    stage, unit = problem.stages[s], problem.units[problem.stages[s].active[0]]
    step = api.plan(profile, budget).estimate.stages[s].seconds / stage.num_iterations
    room = budget * GIB - stage.overhead_bytes - unit.sizes[0]
    rate = problem.copy_bytes_per_second
    num_bytes, seconds = [0], [0.0]  # of all visits before this one
    for _, group, span, _ in stage.visits:
        num_bytes.append(num_bytes[-1] + (unit.sizes[group] if group else 0))
        seconds.append(seconds[-1] + span)
    stretches = (
        (num_bytes[b] - num_bytes[a] - room) / rate + stage.compute_seconds - (seconds[b] - seconds[a])
        for a in range(len(seconds))
        for b in range(a + 1, len(seconds))
    )
    stretched = max(stage.compute_seconds, *stretches)
    plain = max(stage.compute_seconds, (num_bytes[-1] - room) / rate)
    return [
        str(budget),
        f"{step:.3f}",
        f"{stretched:.3f}",
        f"{step / stretched - 1:.1%}",
        f"{plain:.3f}",
        f"{step / plain - 1:.1%}",
    ]


if __name__ == "__main__":
    main()
