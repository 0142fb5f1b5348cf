"""What it costs that memory is given back to the driver when a stage ends: the steady calls of `ours.json`, with and without.

    .venv-nullcuda/bin/python -m tests.nullcuda .venv-nullcuda/bin/python -m benchmarks.race.given_back   # minutes

Each case is run as it is, with what is taken of the driver in each stage; then the same plan on a card with room for all
that PyTorch would cache, with nothing given back: no pool could be faster. Writes `benchmarks/results/given_back_<date>.md`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any
from unittest import mock

import torch
from tqdm import tqdm

from benchmarks.race.calls import timed
from benchmarks.race.one import MOST_ELEMENTS, NullCard
from benchmarks.race.pipelines import build
from benchmarks.race.regression import Ours, kept
from benchmarks.race.report import CARD
from benchmarks.race.rows import ROOMY_BYTES, Key
from benchmarks.race.start import settings
from benchmarks.results_file import environment, table, write_result
from tests.nullcuda import card
from tests.nullcuda.clock import Cost, replace_time
from tests.nullcuda.values import ValuesOfSmall
from vramtune import autotune
from vramtune.offload.conductor import Conductor
from vramtune.offload.memory_limit import MemoryLimit
from vramtune.units import GIB, MIB

HEADER = ["pipeline, cap, link", "cudaMallocs", "weights", "activations", "seconds", "nothing given back", "won"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    if name := parser.parse_args().one:
        print(json.dumps(run(next(case for case in kept() if case.name == name))))
        return
    rows = [cells(case, in_a_process(case)) for case in tqdm(kept(), unit="case")]
    lines = [
        "# What it costs to give memory back to the driver between stages",
        "",
        *environment("python -m benchmarks.race.given_back", gpu=CARD),
        "- A steady call. Weights, activations by stage: what `cudaMalloc` was called for, MiB. Nothing given back: the same plan",
        "  on a card with room for all that PyTorch caches then. `cudaMalloc` takes the host 100 microseconds there, however much",
        "  is asked for, and `cudaFree` waits for the card; on a real one both take longer for more memory.",
        "",
        *table(HEADER, rows),
    ]
    print(*lines, write_result("given_back", lines), sep="\n")


def in_a_process(case: Ours) -> dict[str, Any]:
    """What its own process finds, on a card of its size."""
    key = Key(pipeline=case.pipeline, link=case.link, percent=case.percent, contestant="vramtune", knob="")
    command = [sys.executable, "-m", "benchmarks.race.given_back", "--one", case.name]
    environ = os.environ | settings(key, case.cap_bytes)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environ)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def cells(case: Ours, found: dict[str, Any]) -> list[str]:
    """One line."""
    seconds, without = found["seconds"], found["seconds_without"]
    return [
        case.name,
        str(found["num_mallocs"]),
        " ".join(f"{num_bytes / MIB:g}" for num_bytes in found["weights"]),
        "; ".join(" ".join(f"{num_bytes / MIB:g}" for num_bytes in stage) for stage in found["activations"]),
        f"{seconds:.4f}",
        f"{without:.4f} ({found['num_mallocs_without']} cudaMallocs)",
        f"{1 - without / seconds:.2%}",
    ]


def run(case: Ours) -> dict[str, Any]:
    """Both calls of one case."""
    null_card = NullCard()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["VRAMTUNE_CACHE"] = cache
        replace_time()
        with ValuesOfSmall(MOST_ELEMENTS), Cost():
            pipe, kwargs = build(case.pipeline)
            tuned = autotune(pipe, case.cap_bytes / GIB, call_kwargs=kwargs, device="cuda", progress=False)

            def call() -> None:
                pipe(**kwargs, generator=torch.Generator("cpu").manual_seed(0))

            call()
            weights, activations = taken(call)
            _, seconds = timed(null_card, call)
            num_mallocs = card.counters().num_mallocs
            card.card().total_bytes = ROOMY_BYTES
            with mock.patch.object(torch.accelerator, "empty_cache"), mock.patch.object(MemoryLimit, "__enter__"):
                call()
                _, without = timed(null_card, call)
            num_mallocs_without = card.counters().num_mallocs
            tuned.remove()
    return {
        "seconds": seconds,
        "num_mallocs": num_mallocs,
        "seconds_without": without,
        "num_mallocs_without": num_mallocs_without,
        "weights": weights,
        "activations": activations,
    }


def taken(call: Callable[[], None]) -> tuple[list[int], list[list[int]]]:
    """Bytes of the segments that a call takes of the driver: for weights as stages begin, and for activations in each."""
    moments: list[int] = []

    def noting(move: Callable[..., None]) -> Callable[..., None]:
        def noted(*args: Any) -> None:
            moments.append(len(trace()))
            move(*args)
            moments.append(len(trace()))

        return noted

    torch.cuda.memory._record_memory_history(stacks="python", context=None)
    with mock.patch.object(Conductor, "_move_to", noting(Conductor._move_to)):
        call()
    found = trace()
    torch.cuda.memory._record_memory_history(None)
    stretches = [list(segments(found[a:b])) for a, b in zip(moments, [*moments[1:], len(found)], strict=True)]
    return list(chain(*stretches[::2])), [stretch for stretch in stretches[1::2] if stretch]


def trace() -> list[dict[str, Any]]:
    """What the allocator has done so far."""
    return list(torch.cuda.memory._snapshot()["device_traces"][0])


def segments(events: list[dict[str, Any]]) -> Iterator[int]:
    """Bytes of those that were taken of the driver."""
    return (event["size"] for event in events if event["action"] == "segment_alloc")


if __name__ == "__main__":
    main()
