"""The race with real clocks: vramtune, diffusers' own modes and rivals, unmodified, on this machine's GPU under a cap.

    python -m benchmarks.race.on_gpu --models sdxl flux.1-dev --caps 16 8 6
    python -m benchmarks.race.on_gpu --models small-flux-awkward small-sdxl --percents 60 40 25
    python -m benchmarks.race.on_gpu --contestants vramtune flextensor --settings 2

Models of vramtune's catalog at real size with random weights, and, as `small-...`, the pipelines of the race on the
simulated card. The rivals (requirements.txt) must be importable; who is not is a row that says so. Nothing is downloaded. A
real model is built once, and each run is a process forked from that one. Writes `benchmarks/results/race_on_gpu_<gpu>_<date>`,
`.md` and `.json`, anew after each run: what was cut goes on where it stopped.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any
from unittest import mock

import torch
from tqdm import tqdm

with mock.patch.object(torch.cuda, "is_available", return_value=True):  # asking would start CUDA, and no fork could
    from benchmarks import on_gpu
    from benchmarks.race import pipelines
    from benchmarks.race.calls import Task, outcome
    from benchmarks.race.fork import forked
    from benchmarks.race.gpu_rows import Result, Run
    from benchmarks.race.names import CONTESTANTS, PIPELINES
    from benchmarks.results_file import environment, result_path, write_result
    from vramtune import catalog
    from vramtune.machine.live import live_device
    from vramtune.units import GIB

SMALL = "small-"
HALF_VAE = "fp16-vae-"
"""A model whose VAE stays in float16, as with weights made for that: diffusers' group offload and most rivals fail where
SDXL's pipeline casts it to float32 for the decode."""
MODELS = (*catalog.names(), *(SMALL + name for name in PIPELINES), HALF_VAE + "sdxl")
NAMES = [name for name in CONTESTANTS if name not in ("resident", "sequential")]
SHARES_TOLD = (1.25, 0.5)
"""Of what is allocated for activations with all weights and the whole card's memory; the second, because with little memory
kernels make do with less."""
PATIENCE_SECONDS = 150


class CappedCard:
    """This process's GPU with less memory, for PyTorch's allocator and for whoever asks how much there is."""

    host_seconds = staticmethod(time.perf_counter)

    def __init__(self, cap_bytes: int, context_bytes: int) -> None:
        self.cap_bytes, self.context_bytes = cap_bytes, context_bytes
        self._peak_bytes = self._num_mallocs = 0
        self._registered: dict[int, int] = {}
        properties = torch.cuda.get_device_properties(0)
        torch.cuda.set_per_process_memory_fraction(min(1.0, (cap_bytes - context_bytes) / properties.total_memory))
        self._patch(torch.cuda, "mem_get_info", lambda _: lambda *_: (self._free_bytes(), self.cap_bytes))
        self._patch(torch.cuda, "get_device_properties", lambda ask: lambda *which: Smaller(ask(*which), cap_bytes))
        for module in (torch.cuda, torch.accelerator):  # whoever sets the mark back must not hide what was taken before
            self._patch(
                module, "reset_peak_memory_stats", lambda reset: lambda *which: (self._note(), reset(*which))[1]
            )

        runtime: Any = torch.cuda.cudart()
        self._patch(runtime, "cudaHostRegister", self._registering)
        self._patch(runtime, "cudaHostUnregister", self._unregistering)

    def _registering(self, register: Callable[..., Any]) -> Callable[..., Any]:
        def registered(address: int, num_bytes: int, flags: int) -> Any:
            self._registered[address] = num_bytes
            return register(address, num_bytes, flags)

        return registered

    def _unregistering(self, unregister: Callable[..., Any]) -> Callable[..., Any]:
        def unregistered(address: int) -> Any:
            self._registered.pop(address, None)
            return unregister(address)

        return unregistered

    def _patch(self, module: Any, name: str, made: Callable[[Any], Any]) -> None:
        mock.patch.object(module, name, made(getattr(module, name))).start()

    def _free_bytes(self) -> int:
        return max(0, self.cap_bytes - self.context_bytes - torch.cuda.memory_reserved())

    def _note(self) -> None:
        self._peak_bytes = max(self._peak_bytes, torch.cuda.max_memory_reserved())

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats()
        self._peak_bytes = 0
        self._num_mallocs = torch.cuda.memory_stats().get("num_device_alloc", 0)

    def counters(self) -> dict[str, float]:
        self._note()
        return {
            "used_peak_bytes": self._peak_bytes + self.context_bytes,
            "pinned_bytes": torch.cuda.host_memory_stats().get("allocated_bytes.current", 0)
            + sum(self._registered.values()),
            "num_mallocs": torch.cuda.memory_stats().get("num_device_alloc", 0) - self._num_mallocs,
        }


class Smaller:
    """A device's properties with less memory."""

    def __init__(self, properties: Any, total_memory: int) -> None:
        self._properties, self.total_memory = properties, total_memory

    def __getattr__(self, name: str) -> Any:
        return getattr(self._properties, name)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.race.on_gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["sdxl", "flux.1-dev"], metavar="NAME")
    parser.add_argument("--caps", nargs="+", type=float, default=[16.0, 8.0, 6.0], help="GiB, the context included")
    parser.add_argument("--percents", nargs="+", type=int, help="instead: percent of what the resident run takes")
    parser.add_argument("--contestants", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--settings", type=int, choices=(1, 2), default=1, help="how many shares rivals are told")
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    torch.set_num_threads(1)  # a fork inherits no OpenMP threads, and would wait for them
    gpu = forked(facts, {})
    name = "race_on_gpu_" + re.sub(r"\W+", "_", gpu["name"]).strip("_").lower()
    path = result_path(name).with_suffix(".json")
    command = " ".join(["python -m benchmarks.race.on_gpu", *sys.argv[1:]])
    result = replace(Result.load(path) if path.exists() else Result(header=[]), header=header(gpu, options.steps))
    result.commands.append(command)
    for model in options.models:
        for run in raced(model, options, gpu["context_bytes"], result.runs):
            result.runs.append(run)
            tqdm.write(f"{model}, {run.cap_bytes or 0:_} bytes, {run.title}: {run.reason or run.seconds}")
            result.save(path)
            write_result(name, result.report())
    print(*result.report(), path, sep="\n")


def header(gpu: dict[str, Any], num_steps: int) -> list[str]:
    """The tables' first lines, but the commands."""
    return [
        f"# The race on {gpu['name']}, measured",
        "",
        *environment("python -m benchmarks.race.on_gpu", gpu=gpu["name"]),
        f"- {num_steps} steps; context {gpu['context_bytes'] / GIB:.2f} GiB; {gpu['link'] / 1e9:.1f} GB/s to the GPU.",
    ]


def facts(_: Task) -> dict[str, Any]:
    """Of the GPU."""
    device = live_device(torch.device("cuda", 0))
    return {"name": device.name, "context_bytes": device.context_bytes, "link": device.pinned_copy_bytes_per_second}


def raced(model: str, options: argparse.Namespace, context_bytes: int, known: list[Run]) -> Iterator[Run]:
    """What has not run yet, the resident one first."""
    build = builder(model, options.steps)

    def measured(run: Run, activation_bytes: int) -> Run:
        def on_card(task: Task) -> dict[str, Any]:
            torch.set_num_threads(os.cpu_count() or 1)
            cap_bytes = run.cap_bytes or torch.cuda.get_device_properties(0).total_memory
            with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
                os.environ["VRAMTUNE_CACHE"] = cache  # what earlier calls took must not correct the predictions
                return outcome(task | {"folder": folder}, CappedCard(cap_bytes, context_bytes), build)

        task = {"contestant": run.contestant, "knob": run.knob, "activation_bytes": activation_bytes}
        run.found.update(forked(on_card, task, patience_seconds=PATIENCE_SECONDS))
        return run

    resident = Run(model=model, cap_bytes=None, contestant="resident")
    if resident in known:
        resident = known[known.index(resident)]
    else:
        yield measured(resident, 0)
    if resident.reason:
        sys.exit(
            f"{model} does not run with all weights on the GPU, which everyone else is measured by: {resident.reason}"
        )
    activations = resident.activation_bytes
    todo = [run for run in entries(model, options, context_bytes, resident) if run not in known]
    for run in tqdm(todo, unit="run", desc=model):
        yield measured(run, int(activations * (run.share_told or 1)))


def builder(model: str, num_steps: int) -> Callable[[], pipelines.Built]:
    """What gives a run its pipeline. A small one is built in each run, because bitsandbytes starts CUDA."""
    if model.startswith(SMALL):
        return partial(pipelines.build, model.removeprefix(SMALL))
    pipe, call_kwargs = on_gpu.build(model.removeprefix(HALF_VAE)), on_gpu.call_kwargs(model, num_steps)
    if model.startswith(HALF_VAE):
        pipe.vae.register_to_config(force_upcast=False)
    return lambda: (pipe, call_kwargs)


def entries(model: str, options: argparse.Namespace, context_bytes: int, resident: Run) -> Iterator[Run]:
    """Everyone's first setting before anyone's second."""
    if options.percents:
        whole = resident.peak_bytes - context_bytes
        caps = [context_bytes + whole * percent // 100 for percent in options.percents]
    else:
        caps = [int(cap * GIB) for cap in options.caps]
    for share, cap_bytes, name in product(SHARES_TOLD[: options.settings], caps, options.contestants):
        is_told = CONTESTANTS[name].package not in ("vramtune", "diffusers")
        run = Run(model=model, cap_bytes=cap_bytes, contestant=name, knob=CONTESTANTS[name].knobs[0])
        if is_told:
            yield replace(run, share_told=share, found={})
        elif share == SHARES_TOLD[0]:
            yield run


if __name__ == "__main__":
    main()
