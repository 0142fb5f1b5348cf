"""Every figure of every plan to the last digit, so that a change of the code can be shown to change none.

Six catalog models, four budgets, three GPUs, with and without `vae_tiling`, and diffusers' own modes beside them.

    python -m benchmarks.exact_plans            # writes results/exact_plans.jsonl
    python -m benchmarks.exact_plans --check    # compares with what is there; ends with 1 where a figure differs
"""

import json
import sys
from collections.abc import Iterator

from tqdm import tqdm

import vramtune
from benchmarks.plans import GPUS, MODELS
from benchmarks.results_file import RESULTS
from vramtune import BudgetError, Plan, Profile, catalog

BUDGETS = (6, 8, 12, 24)
FILE = RESULTS / "exact_plans.jsonl"


def main() -> int:
    """Write the lines, or compare them with those that are there."""
    lines = list(every_line())
    if "--check" not in sys.argv[1:]:
        FILE.write_text("".join(line + "\n" for line in lines))
        print(FILE)
        return 0
    before = FILE.read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, lines, strict=True) if old != new]
    for old, new in changed:
        print(f"- {old}\n+ {new}")
    print(f"{len(changed)} of {len(lines)} plans differ from {FILE.name}.")
    return 1 if changed else 0


def every_line() -> Iterator[str]:
    for name in tqdm(MODELS, unit="model"):
        for gpu in GPUS:
            profile = vramtune.profile(catalog.load(name), gpu=gpu, progress=False)
            for budget in BUDGETS:
                for allow in ((), ("vae_tiling",)):
                    case = {"model": name, "gpu": gpu, "budget_gib": budget, "allow": allow}
                    yield json.dumps(case | figures(profile, budget, allow))


def figures(profile: Profile, budget: float, allow: tuple[str, ...]) -> dict[str, object]:
    """All that a plan decides and predicts, or how little would do."""
    try:
        plan = vramtune.plan(profile, budget, allow=allow)
    except BudgetError as error:
        return {"fits": False, "smallest_bytes": error.smallest_bytes, "permitted_bytes": error.permitted_bytes}
    except vramtune.UsageError:
        return {"fits": False}
    modes = vramtune.compare(profile, budget, allow=allow).stock
    return plan_figures(plan) | {"modes": [[mode.mode, mode.peak_bytes, mode.seconds] for mode in modes]}


def plan_figures(plan: Plan) -> dict[str, object]:
    estimate = plan.estimate
    return {
        "fits": True,
        "permissions": plan.permissions,
        "placements": [[p.name, p.kept, p.active, p.num_slots, len(p.groups)] for p in plan.placements],
        "peak_bytes": estimate.peak_bytes,
        "seconds": estimate.seconds,
        "first_call_seconds": estimate.first_call_seconds,
        "bound_seconds": estimate.bound_seconds,
        "moved_bytes": estimate.moved_bytes,
        "stages": [[s.name, s.peak_bytes, s.seconds, s.compute_seconds, s.moved_bytes] for s in estimate.stages],
    }


if __name__ == "__main__":
    sys.exit(main())
