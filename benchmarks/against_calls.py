"""Predicted beside measured: every component's call that `benchmarks.calls_on_gpu` measured, on the card as it is listed.

    python -m benchmarks.against_calls            # the newest file of calls; writes results/against_calls_<date>.md
    python -m benchmarks.against_calls FILE --gpu H100

Needs no GPU. Seconds: the fastest of a few, from an idle GPU. Allocated: the most that lived beyond the weights.
"""

import argparse
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from benchmarks.calls_on_gpu import lines_of
from benchmarks.results_file import RESULTS, environment, table, write_result
from vramtune import Profile, api, catalog

HEADER = ["model", "call", "measured s", "of it host", "predicted s", "error"]
LONG_SECONDS = 0.05
"""Shorter calls wait for the host, mostly."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=max(RESULTS.glob("calls_*.jsonl.gz"), default=None))
    parser.add_argument("--gpu", default="H100")
    options = parser.parse_args()
    if options.file is None:
        parser.error("benchmarks/results has no file of calls: run `python -m benchmarks.calls_on_gpu` on a GPU.")
    measured: dict[str, list[dict[str, Any]]] = {}
    for line in lines_of(options.file):
        if line["call"] is not None:
            measured.setdefault(line["model"], []).append(line)
    rows, errors = [], []
    for model in tqdm(measured, unit="model"):
        profile = predicted(model, options.gpu)
        for line in measured[model]:
            seconds, guess = min(line["seconds"]), call_seconds(profile, line["call"])
            if guess is not None:
                errors.append((guess / seconds - 1, seconds))
                cells = [f"{seconds:.4f}", f"{min(line['host_seconds']):.4f}", f"{guess:.4f}", f"{errors[-1][0]:+.0%}"]
                rows.append([model, line["call"], *cells])
    lines = [
        f"# Calls of components, predicted for {options.gpu} and measured ({options.file.name})",
        "",
        *environment("python -m benchmarks.against_calls"),
        *summary(errors),
        "- The efficiencies of this architecture were fitted to these calls; *host*: until the call returned.",
        "",
        *table(HEADER, rows),
    ]
    print(*lines, write_result("against_calls", lines), sep="\n")


def summary(errors: list[tuple[float, float]]) -> list[str]:
    """Lines on how far predictions are off, of (error, measured seconds) each: of all calls, and of the long ones."""
    lines = []
    for least_seconds, which in ((0.0, "All"), (LONG_SECONDS, f"Of {1e3 * LONG_SECONDS:g} ms and more")):
        if found := [error for error, seconds in errors if seconds >= least_seconds]:
            absolute = median(map(abs, found))
            lines.append(
                f"- {which}: {len(found)} calls, median absolute error {absolute:.0%}, median error {median(found):+.0%}."
            )
    return lines


def predicted(model: str, gpu: str) -> Profile:
    """The same call as `benchmarks.calls_on_gpu` makes."""
    entry = next(entry for entry in catalog.models() if entry.name == model)
    kwargs = entry.call()
    if "sigmas" not in kwargs and "timesteps" not in kwargs:
        kwargs["num_inference_steps"] = 2
    return api.profile(catalog.load(model), gpu=gpu, call_kwargs=kwargs, progress=False)


def call_seconds(profile: Profile, call: str) -> float | None:
    """Of the first activity of that component and method."""
    component, _, method = call.partition(".")
    for stage in profile.stages:
        for activity in stage.activities:
            if (activity.component, activity.method) == (component, method):
                return sum(segment.layer_seconds + segment.after_seconds for segment in activity.segments)
    return None


if __name__ == "__main__":
    main()
