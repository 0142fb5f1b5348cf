"""Every model of the catalog at its model card's call: what building, tracing and planning take, and what is predicted.

Each model in a process of its own, one after the other. The seconds and gigabytes of the predicted call are
predictions; the others are this machine's.

    python -m benchmarks.catalog_plans            # writes results/catalog_<date>.md
    python -m benchmarks.catalog_plans flux.1-dev # one model, as JSON
"""

import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from tqdm import tqdm

from benchmarks.results_file import environment, table, write_result
from vramtune import BudgetError, Plan, Profile, VramtuneError, api, catalog
from vramtune.units import GIB, format_seconds

Result = TypeVar("Result")

GPU, BUDGET = "RTX 4090", 24
MAX_BUILD, MAX_PLAN, MAX_RSS = 2.0, 25.0, 3.0
HEADER = [
    "model",
    "call",
    "billions: denoiser",
    "text",
    "VAE",
    "other",
    "build s (CPU)",
    "trace and plan s (CPU)",
    "RSS GiB",
    "budget GiB",
    "peak GiB",
    "seconds",
    "limited by",
]


def main() -> int:
    """All models, or what one process measures of one."""
    if len(sys.argv) > 1:
        print(json.dumps(one_model(sys.argv[1])))
        return 0
    found = [in_a_process(entry.name) for entry in tqdm(catalog.models(), unit="model")]
    lines = [
        f"# The catalog: {len(found)} models at their model cards' calls",
        "",
        *environment("python -m benchmarks.catalog_plans"),
        f"- Predicted for {GPU}, {BUDGET} GiB: peak, seconds and what limits them. Nothing here was measured on a GPU.",
        "- Build, trace and plan: wall seconds and, in brackets, the process's own; on a machine shared with others the",
        "  first are larger than they need be. The imports of torch and diffusers are not in them, those of the model's",
        "  own classes are. RSS: the process's peak.",
        "- A model that is larger than the card allows with all its weights away says what it would need.",
        "",
        *verdict(found),
        "",
        *table(HEADER, [row(each) for each in found]),
        "",
        "## Not predicted",
        "",
        *([f"- {each['name']}: {each['error']}" for each in found if "error" in each] or ["None."]),
    ]
    print(write_result("catalog", lines))
    return 0


def in_a_process(name: str) -> dict[str, Any]:
    """What `one_model` finds, or how its process ended."""
    command = [sys.executable, "-m", "benchmarks.catalog_plans", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        error = f"its process ended with {done.returncode}"
        return {"name": name, "call": "", "build": (0.0, 0.0), "plan": (0.0, 0.0), "rss_gib": 0.0} | {
            "billions": {"denoiser": 0.0, "text": 0.0, "VAE": 0.0, "other": 0.0},
            "error": error,
        }
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def one_model(name: str) -> dict[str, Any]:
    """Build it, trace its call, plan; sizes, times, memory and the prediction or the error."""
    warnings.simplefilter("ignore")
    for package in ("torch", "diffusers.pipelines.pipeline_utils"):  # not part of what a model takes
        import_module(package)

    entry = next(entry for entry in catalog.models() if entry.name == name)
    pipe, build_seconds = timed(lambda: catalog.load(name))
    call = entry.call()
    outcome, plan_seconds = timed(lambda: prediction(pipe, call))
    return {
        "name": name,
        "call": call_text(entry),
        "billions": billions(pipe),
        "build": build_seconds,
        "plan": plan_seconds,
        "rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
        **outcome,
    }


def timed(work: Callable[[], Result]) -> tuple[Result, tuple[float, float]]:
    """With its wall and its process seconds."""
    wall, own = time.perf_counter(), time.process_time()
    result = work()
    return result, (time.perf_counter() - wall, time.process_time() - own)


def prediction(pipe: Any, call: dict[str, object]) -> dict[str, Any]:
    """Of the plan for the card, with VAE tiling only where nothing fits without; else what would be needed."""
    try:
        profile = api.profile(pipe, gpu=GPU, call_kwargs=call, progress=False)
    except VramtuneError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    try:
        return planned(profile, ())
    except BudgetError as error:
        if error.permitted_bytes is not None and error.permitted_bytes <= BUDGET * GIB:
            return planned(profile, ("vae_tiling",))
        needs = min(filter(None, (error.smallest_bytes, error.permitted_bytes)))
        return {"needs_gib": needs / GIB}


def planned(profile: Profile, allow: tuple[str, ...]) -> dict[str, Any]:
    plan = api.plan(profile, BUDGET, allow=allow)
    return {
        "permissions": plan.permissions,
        "peak_gib": plan.estimate.peak_bytes / GIB,
        "seconds": plan.estimate.seconds,
        "limit": limit(plan),
    }


def limit(plan: Plan) -> str:
    """Compute, or the copies of one stage."""
    words = {"compute_bound": "compute", "copy_bound": "copies in {}", "host_bound": "the host in {}"}
    return next((words[reason.kind].format(reason.stage) for reason in plan.reasons if reason.kind in words), "")


def billions(pipe: Any) -> dict[str, float]:
    """Numbers in the weight files, tied ones once."""
    import torch

    found = dict.fromkeys(("denoiser", "text", "VAE", "other"), 0.0)
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            tensors = {id(tensor): tensor for tensor in part.state_dict(keep_vars=True).values()}
            found[kind_of(name)] += sum(tensor.numel() for tensor in tensors.values()) / 1e9
    return found


def kind_of(component: str) -> str:
    """Connectors, vocoders and the VAE for sound are "other"."""
    if "transformer" in component or component == "unet":
        return "denoiser"
    if component.startswith("text_encoder"):
        return "text"
    return "VAE" if component == "vae" else "other"


def call_text(entry: catalog.Entry) -> str:
    """What differs from the pipeline's defaults."""
    given = [f"{name}={shown(value)}" for name, value in entry.call_kwargs.items()]
    if entry.image_size is not None:
        given.append("image {}x{}".format(*entry.image_size))
    return ", ".join(given) or "defaults"


def shown(value: object) -> str:
    return f"{len(value)} values" if isinstance(value, list) else repr(value)


def row(found: dict[str, Any]) -> list[str]:
    cells = [
        found["name"],
        found["call"],
        *(f"{number:.3f}" if number else "" for number in found["billions"].values()),
        "{:.1f} ({:.1f})".format(*found["build"]),
        "{:.1f} ({:.1f})".format(*found["plan"]),
        f"{found['rss_gib']:.2f}",
    ]
    if "error" in found:
        return [*cells, str(BUDGET), "", "", "not predicted, see below"]
    if "needs_gib" in found:
        return [*cells, f"needs {found['needs_gib']:.2f}", "", "", "activations"]
    budget = " with ".join([str(BUDGET), *found["permissions"]])
    return [*cells, budget, f"{found['peak_gib']:.2f}", format_seconds(found["seconds"]), found["limit"]]


def verdict(found: list[dict[str, Any]]) -> list[str]:
    """How many keep to the limits, and which do not."""
    limits: dict[str, Callable[[dict[str, Any]], bool]] = {
        f"build in {MAX_BUILD:.0f} s of CPU": lambda each: each["build"][1] <= MAX_BUILD,
        f"trace and plan in {MAX_PLAN:.0f} s of CPU": lambda each: each["plan"][1] <= MAX_PLAN,
        f"need at most {MAX_RSS:.0f} GiB of RAM": lambda each: each["rss_gib"] <= MAX_RSS,
        "are predicted": lambda each: "error" not in each,
    }
    lines = []
    for title, keeps in limits.items():
        others = [each["name"] for each in found if not keeps(each)]
        but = f"; not {', '.join(others)}" if others else ""
        lines.append(f"- {len(found) - len(others)} of {len(found)} {title}{but}.")
    return lines


if __name__ == "__main__":
    sys.exit(main())
