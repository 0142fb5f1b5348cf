"""What fits where, how fast, how near the bound, and beside the stock modes: six models, six budgets, three GPUs.

Every figure is predicted. The command ends with 1 if a stock mode that fits is more than 1% faster than the plan.

    python -m benchmarks.plans
"""

import sys

from tqdm import tqdm

from benchmarks.results_file import environment, table, write_result
from vramtune import BudgetError, UsageError, api, catalog
from vramtune.schema import Comparison, Plan, Profile
from vramtune.units import GIB, format_seconds

BUDGETS = (4, 6, 8, 12, 16, 24)
MODELS = ("sd15", "sdxl", "sd3.5-medium", "sd3.5-large", "flux.1-dev", "wan2.1-14b")
GPUS = ("RTX 4060", "RTX 4090", "H100")
HEADER = [
    "model",
    "GPU",
    "budget GiB",
    "fits",
    "peak GiB",
    "seconds",
    "above bound",
    "best stock mode that fits",
    "its seconds / ours",
]


def main() -> int:
    """Trace each model for each GPU, plan every budget, write the table."""
    rows, slower = [], []
    for name in tqdm(MODELS, unit="model"):
        for gpu in GPUS:
            profile = api.profile(catalog.load(name), gpu=gpu, progress=False)
            for budget in BUDGETS:
                row, ratio = one_case(name, gpu, profile, budget)
                rows.append(row)
                if ratio is not None and ratio < 0.99:
                    slower.append(row)
    verdict = "No stock mode that fits is more than 1% faster than the plan."
    if slower:
        verdict = f"{len(slower)} cases in which a stock mode that fits is more than 1% faster."
    lines = [
        "# Plans: six models, six budgets, three GPUs, predicted",
        "",
        *environment("python -m benchmarks.plans"),
        "- Each pipeline's default call; `vae_tiling` is not allowed, but named where it would help.",
        "- No figure here was measured on a GPU.",
        "",
        verdict,
        "",
        *table(HEADER, rows),
    ]
    print(write_result("plans_predicted", lines), verdict, sep="\n")
    return 1 if slower else 0


def one_case(name: str, gpu: str, profile: Profile, budget: int) -> tuple[list[str], float | None]:
    """A row, and how much slower the best stock mode is (None where there is no plan or none fits)."""
    start = [name, gpu, str(budget)]
    try:
        plan = api.plan(profile, budget)
    except BudgetError as error:
        needs = f"no: needs {error.smallest_bytes / GIB:.2f}"
        if error.permitted_bytes is not None:
            needs += f", {error.permitted_bytes / GIB:.2f} with {error.permission}"
        return [*start, needs, "", "", "", best_stock(api.compare(profile, budget))[0], ""], None
    except UsageError:
        return [*start, "larger than the card", "", "", "", "", ""], None
    return plan_row(start, plan, api.compare(profile, budget))


def plan_row(start: list[str], plan: Plan, comparison: Comparison) -> tuple[list[str], float | None]:
    found = plan.estimate
    mode, seconds = best_stock(comparison)
    ratio = seconds / found.seconds if seconds is not None else None
    return [
        *start,
        "yes",
        f"{found.peak_bytes / GIB:.2f}",
        format_seconds(found.seconds),
        f"{found.gap_fraction + 0.0:.1%}".replace("-0.0", "0.0"),
        mode,
        "" if ratio is None else f"{ratio:.2f}",
    ], ratio


def best_stock(comparison: Comparison) -> tuple[str, float | None]:
    """The fastest stock mode that fits."""
    fitting = [mode for mode in comparison.modes if mode.fits and mode.mode != "vramtune"]
    best = min(fitting, key=lambda mode: mode.seconds, default=None)
    return (best.mode, best.seconds) if best else ("none", None)


if __name__ == "__main__":
    sys.exit(main())
