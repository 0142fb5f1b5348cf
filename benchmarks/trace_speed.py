"""What a trace takes here and in another checkout: CPU seconds of both in turn, and the ratio of each pair.

Each run is a process of its own, so that neither finds what the other has remembered. Both use this interpreter.

    python -m benchmarks.trace_speed ../older_checkout            # SDXL, FLUX.1 and Wan 2.1, five pairs each; writes results/
    python -m benchmarks.trace_speed ../older_checkout qwen-image # one model
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.results_file import environment, table, write_result

MODELS = ("sdxl", "flux.1-dev", "wan2.1-14b")
PAIRS = 5
HERE = Path(__file__).parents[1]
RUN = """
import sys, time
import torch, diffusers.pipelines.pipeline_utils
from vramtune import catalog, profile

pipe = catalog.load(sys.argv[1])
began = time.process_time()
profile(pipe, gpu="RTX 4090", progress=False)
print(time.process_time() - began)
"""


def main() -> None:
    """A line for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, metavar="CHECKOUT")
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    asked = parser.parse_args()
    other = asked.checkout.resolve()
    if not (other / "vramtune" / "__init__.py").is_file():  # the installed one would be measured against itself
        parser.error(f"{other} is no checkout of vramtune")
    rows = []
    for name in asked.models:
        pairs = [(cpu_seconds(HERE, name), cpu_seconds(other, name)) for _ in range(PAIRS)]
        ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratios = sorted(here / there for here, there in pairs)
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        rows.append([name, f"{ours:.2f}", f"{theirs:.2f}", f"{statistics.median(ratios):.2f}", spread])
    lines = table(["model", "here, CPU s", "there, CPU s", "ratio", "of single pairs"], rows)
    print("\n".join(lines))
    if tuple(asked.models) == MODELS:
        write_result("trace_speed", report(lines, commit_of(HERE), commit_of(other)))


def report(rows: list[str], here: str, there: str) -> list[str]:
    """The result's text."""
    return [
        "# Traces, beside those of another commit",
        "",
        *environment("python -m benchmarks.trace_speed CHECKOUT"),
        f"- Here: {here}; there: {there}. {PAIRS} pairs of processes in turn; medians, and the ratio of pairs.",
        "- The processor time of `vramtune.profile` at the pipeline's default call; imports and building are not in it.",
        "",
        *rows,
    ]


def commit_of(checkout: Path) -> str:
    """The commit that is checked out."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def cpu_seconds(checkout: Path, name: str) -> float:
    """Of one trace in a new process."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", RUN, name]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
