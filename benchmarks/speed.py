"""How long the command line and the solver take, and how much RAM.

The command line runs in an environment of its own, which has what `pip install vramtune` brings: neither torch nor diffusers.

    python -m benchmarks.speed
"""

import os
import statistics
import subprocess
import tempfile
import time
import venv
from pathlib import Path

from tqdm import tqdm

from benchmarks.plans import MODELS
from benchmarks.results_file import environment, table, write_result
from vramtune import catalog
from vramtune.catalog.shipped import shipped_trace
from vramtune.machine.gpus import find_gpu
from vramtune.predict import price_model
from vramtune.tuner.problem import pose
from vramtune.tuner.search import best_candidate
from vramtune.units import GIB

ROOT = Path(__file__).parent.parent
RUNS, SOLVES = 5, 9
BUDGETS = (6, 8, 12, 24)
LIMITS = {"sdxl": 0.8, "flux.1-dev": 0.8, "wan2.1-14b": 0.8}
"""Seconds that `vramtune plan` may take on a machine that does nothing else; neither it nor `which` imports torch."""
MOST_GIB = 0.24


def main() -> None:
    """Run every command a few times, solve every problem a few times, write the tables."""
    with tempfile.TemporaryDirectory() as folder:
        programs = fresh_environment(Path(folder))
        python, vramtune = str(programs / "python"), str(programs / "vramtune")
        commands = [
            [name, *started([vramtune, "plan", name, "--vram-gb", "8", "--gpu", "RTX 4060"]), limit(name)]
            for name in tqdm(sorted(catalog.names(), key=lambda name: name not in LIMITS), unit="model")
        ]
        starts = [
            ["`import vramtune`", *started([python, "-c", "import vramtune"])[:2], "0.1 s"],
            ["nothing: `python -c pass`", *started([python, "-c", "pass"])[:2], ""],
            ["`vramtune --help`", *started([vramtune, "--help"])[:2], "0.3 s"],
            ["`vramtune which flux.1-dev`", *started([vramtune, "which", "flux.1-dev"])[:2], "5 s"],
        ]
    lines = [
        "# Speed of the command line and the solver, measured",
        "",
        *environment("python -m benchmarks.speed"),
        f"- Medians; {RUNS} runs of each command, {SOLVES} solves. CPU seconds are the process's own, whatever else runs;",
        f"  load average over the last minute at the end: {os.getloadavg()[0]:.1f}.",
        "",
        '## `vramtune plan MODEL --vram-gb 8 --gpu "RTX 4060"`, the whole process, in an environment without torch',
        "",
        *table(["model", "seconds", "CPU seconds", "peak RAM GiB", "may take"], commands),
        "",
        "## Start",
        "",
        *table(["command", "seconds", "CPU seconds", "may take"], starts),
        "",
        "## Solve: from a profile to groups kept (milliseconds, RTX 4090, `vae_tiling` allowed)",
        "",
        *table(["model", *(f"{budget} GiB" for budget in BUDGETS)], [solves(name) for name in MODELS]),
    ]
    print(write_result("speed", lines))


def limit(name: str) -> str:
    return f"{LIMITS[name]} s, {MOST_GIB} GiB" if name in LIMITS else "25 s, 3 GiB"


def fresh_environment(folder: Path) -> Path:
    """The programs of a new environment with this checkout and its base dependencies."""
    venv.create(folder, with_pip=True)
    programs = folder / "bin"
    install = [programs / "python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", ROOT]
    subprocess.run(install, check=True)
    if subprocess.run([programs / "python", "-c", "import torch"], stderr=subprocess.DEVNULL).returncode == 0:
        raise RuntimeError("The base dependencies brought torch.")
    return programs


def started(command: list[str]) -> tuple[str, str, str]:
    """Median wall and CPU seconds, and highest resident set of a process, by the operating system's account."""
    seconds, cpu, peaks = [], [], []
    for _ in range(RUNS):
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds.append(time.perf_counter() - begin)
        cpu.append(usage.ru_utime + usage.ru_stime)
        peaks.append(usage.ru_maxrss * 1024 / GIB)
        if os.waitstatus_to_exitcode(status) not in (0, 3):
            raise RuntimeError(f"{command} failed")
    return f"{statistics.median(seconds):.2f}", f"{statistics.median(cpu):.2f}", f"{max(peaks):.2f}"


def solves(name: str) -> list[str]:
    """A row of median solve milliseconds."""
    trace = shipped_trace(name)
    assert trace is not None, name
    profile = price_model(trace, find_gpu("RTX 4090"))
    problem = pose(profile, ("vae_tiling",))
    row = [name]
    for budget in BUDGETS:
        spans = []
        for _ in range(SOLVES):
            begin = time.perf_counter()
            candidate = best_candidate(problem, min(budget * GIB, profile.device.usable_bytes))
            spans.append(time.perf_counter() - begin)
        row.append(f"{statistics.median(spans) * 1e3:.0f}" if candidate else "does not fit")
    return row


if __name__ == "__main__":
    main()
