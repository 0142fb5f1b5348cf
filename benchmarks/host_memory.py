"""What a process really holds of the host's memory when its weights stay in files: `python -m benchmarks.host_memory`.

A FLUX.1 of 2.8 GiB in random weights is written to a folder. A fresh process loads it with `vramtune.load` for the simulated
GPU and calls it twice; meanwhile its anonymous memory (`RssAnon`, all that is not a file's) is read every few milliseconds.
Another one makes the pipeline in memory and tunes it there. The simulated GPU's memory is the host's too and is taken off, as
is what the process held before.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.results_file import environment, table, write_result
from vramtune.units import GIB, MIB

HEADS, NUM_DOUBLE, NUM_SINGLE = 64, 10, 20
"""1024 channels."""
STEPS = {"height": 16, "width": 16, "max_sequence_length": 16, "num_inference_steps": 2, "output_type": "pt"}
VRAM_GIB = 0.75


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ram-gb", type=float, nargs="+", default=[0.5, 1.0, 4.0])
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "GIB"), help="what a fresh process does")
    parser.add_argument("--write", metavar="FOLDER", help="what another one does")
    parser.add_argument("--in-memory", action="store_true", help="what a third one does")
    options = parser.parse_args()
    if options.write:
        make().save_pretrained(options.write)
    elif options.in_memory:
        print(json.dumps(in_memory()))
    elif options.one:
        print(json.dumps(one(Path(options.one[0]), float(options.one[1]))))
    else:
        with tempfile.TemporaryDirectory() as folder:
            child("--write", folder)
            rows = [json.loads(child("--one", folder, str(ram_gb)).splitlines()[-1]) for ram_gb in options.ram_gb]
        tuned = json.loads(child("--in-memory").splitlines()[-1])
        write_result("host_memory", text(rows, tuned))


def child(*arguments: str) -> str:
    """What a fresh process prints."""
    command = [sys.executable, "-m", "benchmarks.host_memory", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def make() -> Any:
    """The pipeline, in random weights."""
    from diffusers import FluxTransformer2DModel

    from tests import tiny_pipelines

    pipe = tiny_pipelines.build("flux")
    config = dict(pipe.transformer.config) | {
        "num_layers": NUM_DOUBLE,
        "num_single_layers": NUM_SINGLE,
        "num_attention_heads": HEADS,
    }
    pipe.register_modules(transformer=FluxTransformer2DModel.from_config(config))
    return pipe


class Watch(threading.Thread):
    """Reads the process's anonymous memory until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes, self._is_over = 0, threading.Event()

    def run(self) -> None:
        """Keep the highest."""
        while not self._is_over.wait(0.005):
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes())

    def stop(self) -> int:
        """The highest that was seen."""
        self._is_over.set()
        self.join()
        return self.peak_bytes


def anonymous_bytes() -> int:
    """Of this process now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def one(folder: Path, ram_gb: float) -> dict[str, Any]:
    """Load the pipeline, call it twice, and say what that held."""
    import diffusers
    import torch

    import vramtune

    sim = used_once()
    before, began = anonymous_bytes(), time.perf_counter()
    watch = Watch()
    watch.start()
    pipe, tuned = vramtune.load(
        diffusers.FluxPipeline, folder, VRAM_GIB, ram_gb=ram_gb, device="sim", call_kwargs=STEPS, progress=False
    )
    loaded_bytes, loaded_seconds = watch.peak_bytes - before, time.perf_counter() - began
    loaded_device_bytes = sim.max_memory_allocated()
    sums = [
        float(pipe("a photo of a cat", generator=torch.Generator().manual_seed(0), **STEPS).images.sum()) for _ in "12"
    ]
    peak_bytes = watch.stop() - before - sim.max_memory_allocated()
    estimate = tuned.plan.estimate
    return {
        "weight_bytes": sum(file.stat().st_size for file in folder.rglob("*.safetensors")),
        "ram_gb": ram_gb,
        "planned_bytes": estimate.host_bytes,
        "locked_bytes": estimate.locked_bytes,
        "file_bytes": estimate.file_bytes,
        "loaded_bytes": max(loaded_bytes - loaded_device_bytes, 0),
        "loaded_seconds": loaded_seconds,
        "peak_bytes": peak_bytes,
        "device_bytes": sim.max_memory_allocated(),
        "sums": sums,
    }


def used_once() -> Any:
    """The simulated GPU, with everything imported and used once."""
    import torch

    from tests import tiny_pipelines
    from tests.simgpu import load
    from vramtune.machine.live import live_device

    sim = load()
    tiny = tiny_pipelines.build("flux").to("sim")
    tiny_pipelines.run(tiny, "flux")
    del tiny
    live_device(torch.device("sim"))
    sim.reset()
    return sim


def in_memory() -> dict[str, Any]:
    """Tune a pipeline that is in memory, and say what it held before and at the most."""
    import vramtune

    sim, start = used_once(), anonymous_bytes()
    pipe = make()
    gc.collect()
    before = anonymous_bytes()
    watch = Watch()
    watch.start()
    vramtune.autotune(pipe, VRAM_GIB, device="sim", call_kwargs=STEPS, progress=False)
    peak_bytes = watch.stop()
    return {
        "weight_bytes": before - start,
        "peak_bytes": peak_bytes - start,
        "device_bytes": sim.max_memory_allocated(),
    }


def text(rows: list[dict[str, Any]], tuned: dict[str, Any]) -> list[str]:
    """The result as a page."""
    sums = {value for row in rows for value in row["sums"]}
    names = ("planned_bytes", "locked_bytes", "file_bytes", "loaded_bytes", "peak_bytes")
    return [
        "# What a process holds of the host when its weights stay in files",
        "",
        *environment("python -m benchmarks.host_memory", gpu="simulated GPU"),
        "",
        f"A FLUX.1 of {rows[0]['weight_bytes'] / GIB:.2f} GiB in files, within {VRAM_GIB} GiB of a simulated GPU. Measured: anonymous "
        "memory, everything else that the calls need included, without what the process held before and without the device's "
        "memory, which is the host's too. All in MiB.",
        "",
        *table(
            ["`ram_gb`", "planned", "of it page-locked", "stays in files", "measured, loading", "measured, two calls"],
            [[str(row["ram_gb"]), *(f"{row[name] / MIB:.0f}" for name in names)] for row in rows],
        ),
        "",
        f"The outputs of all calls have {'one sum' if len(sums) == 1 else 'different sums'}.",
        "",
        f"Tuned in memory, a pipeline of {tuned['weight_bytes'] / MIB:.0f} MiB held {tuned['peak_bytes'] / MIB:.0f} MiB at the most "
        f"meanwhile, the device's {tuned['device_bytes'] / MIB:.0f} MiB included: {tuned['peak_bytes'] / tuned['weight_bytes']:.2f} "
        "times as much.",
    ]


if __name__ == "__main__":
    main()
