"""What each component's call of catalog models takes on this machine's GPU, all resident: the ground for the model of time.

    python -m benchmarks.calls_on_gpu                          # what fits, in the catalog's order
    python -m benchmarks.calls_on_gpu sdxl flux.1-dev wan2.1-1.3b

Weights are random, on the GPU from the start; nothing is downloaded. Each different call of a component (by the shapes
of its inputs) runs a few times: once from an empty cache with every event of PyTorch's allocator written down, timed
from an idle GPU, and under PyTorch's profiler. Writes `benchmarks/results/calls_<gpu>_<date>.jsonl.gz`, a line per call,
as soon as it is known; a run that was cut goes on with the models that have no lines yet.
"""

import argparse
import gc
import gzip
import json
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.on_gpu import materialise
from benchmarks.results_file import result_path
from vramtune import catalog
from vramtune.contract import entries, modules_of
from vramtune.profiler.tensor_trees import tensors_of
from vramtune.units import GIB

NUM_TIMED = 3
LONG_SECONDS = 3.0
"""A call that takes longer is timed once."""
MOST_EVENTS = 400_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=catalog.names(), metavar="MODEL")
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    device, name = torch.device("cuda"), torch.cuda.get_device_name()
    path = result_path("calls_" + re.sub(r"\W+", "_", name).lower()).with_suffix(".jsonl.gz")
    done = {line["model"] for line in lines_of(path)}
    for model in options.models:
        if model in done:
            continue
        began = time.perf_counter()
        try:
            measure(model, device, options.steps, path)
            outcome = "done"
        except Exception as error:  # one that does not fit or run must not cost those after it
            traceback.print_exc()
            outcome = f"failed: {type(error).__name__}: {error}".splitlines()[0][:160]
            append(path, {"model": model, "call": None, "outcome": outcome})
        gc.collect()
        torch.cuda.empty_cache()
        print(f"{model}: {outcome}, {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """What a file of results holds; nothing if there is none."""
    if path.exists():
        with gzip.open(path, "rt") as file:
            yield from map(json.loads, file)


def append(path: Path, line: dict[str, Any]) -> None:
    """Put a line at the end of a file of results, which is whole at any moment: a cut line could not be read past."""
    before = path.read_bytes() if path.exists() else b""
    part = path.with_suffix(".part")
    part.write_bytes(before + gzip.compress(json.dumps(line).encode() + b"\n"))
    part.replace(path)


def measure(model: str, device: torch.device, steps: int, path: Path) -> None:
    """One call of the pipeline, whose components answer from what they were measured at."""
    entry = next(entry for entry in catalog.models() if entry.name == model)
    pipe = catalog.load(model)
    weight_bytes = sum(p.nbytes for part in modules_of(pipe).values() for p in part.parameters())
    if weight_bytes > torch.cuda.mem_get_info()[0] - 4 * GIB:
        raise RuntimeError(f"{weight_bytes / GIB:.1f} GiB of weights are more than is free")
    for part in modules_of(pipe).values():
        materialise(part, device)
    pipe.set_progress_bar_config(disable=True)
    watch(pipe, lambda call: append(path, {"model": model, **call}))
    kwargs = {"prompt": "a photo of a cat", **entry.call(), "output_type": "pt"}
    if "sigmas" not in kwargs and "timesteps" not in kwargs:
        kwargs["num_inference_steps"] = steps
    pipe(**kwargs, generator=torch.Generator("cpu").manual_seed(0))


def watch(pipe: Any, found: Callable[[dict[str, Any]], None]) -> None:
    """Have every entry of the components measure what it does the first time, and answer with that from then on."""
    inside: list[str] = []

    def watching(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        answers: dict[object, Any] = {}

        @wraps(original)
        def answering(*args: Any, **kwargs: Any) -> Any:
            if inside:  # a method of the component that calls another one
                return original(*args, **kwargs)
            shapes = tuple((tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors_of((args, kwargs)))
            if shapes not in answers:
                inside.append(name)
                try:
                    answers[shapes], call = measured(lambda: original(*args, **kwargs))
                finally:
                    inside.pop()
                found({"call": name, "inputs": shapes, **call})
            return answers[shapes]

        return answering

    for component, module in modules_of(pipe).items():
        for entry, (owner, method) in entries(module).items():
            vars(owner)[method] = watching(f"{component}.{entry}", getattr(owner, method))


def measured(call: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What a call returns, and what it takes: seconds, bytes, allocator events, operations by shape."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.memory._record_memory_history(context=None, max_entries=MOST_EVENTS)
    first_seconds, _, output = timed(call)
    events = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
    torch.cuda.memory._record_memory_history(enabled=None)
    peaks = torch.cuda.max_memory_allocated() - before[0], torch.cuda.max_memory_reserved() - before[1]
    del output
    times = [timed(call)[:2] for _ in range(1 if first_seconds > LONG_SECONDS else NUM_TIMED)]
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], record_shapes=True) as profiled:
        output = call()
        torch.cuda.synchronize()
    return output, {
        "first_seconds": first_seconds,
        "seconds": [seconds for seconds, _ in times],
        "host_seconds": [seconds for _, seconds in times],
        "peak_allocated_bytes": peaks[0],
        "peak_reserved_bytes": peaks[1],
        "events": compact(events),
        "operations": operations(profiled),
    }


def timed(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds until an idle GPU is idle again, seconds until the call returns, and what it returns."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    output = call()
    returned = time.perf_counter()
    torch.cuda.synchronize()
    return time.perf_counter() - began, returned - began, output


def compact(events: list[dict[str, Any]]) -> list[list[Any]]:
    """The allocator's events as [action, number of the address, bytes]."""
    numbers: dict[int, int] = {}
    return [
        [each["action"], numbers.setdefault(each["addr"], len(numbers)), each["size"]]
        for each in events
        if "addr" in each
    ]


def operations(profiled: Any) -> list[dict[str, Any]]:
    """Operations that started kernels, by name and shapes of their inputs: times called, microseconds on the GPU and host."""
    return [
        {
            "name": each.key,
            "shapes": each.input_shapes,
            "count": each.count,
            "device_us": round(each.self_device_time_total, 1),
            "host_us": round(each.self_cpu_time_total, 1),
        }
        for each in profiled.key_averages(group_by_input_shape=True)
        if each.self_device_time_total > 0 or each.key.startswith("aten::")
    ]


if __name__ == "__main__":
    main()
