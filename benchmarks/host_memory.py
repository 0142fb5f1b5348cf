"""What a process really holds of the host's memory when its weights stay in files: `python -m benchmarks.host_memory`.

A FLUX.1 of 3 GiB in random weights is written to a folder. A fresh process loads it with `vramtune.load` for the simulated
GPU and calls it twice; meanwhile its anonymous memory (`RssAnon`, all that is not a file's) is read every few milliseconds.
The system limits that process (`RLIMIT_DATA`): to what it held before, the mapped files, which count too, `ram_gb`, the device's
memory, and `SLACK_GIB` for all else. A third one loads the pipeline into memory within the same limit; a fourth makes it in
memory and tunes it there. The simulated GPU's memory is the host's too and is taken off, as is what the process held before.
"""

import argparse
import gc
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.results_file import environment, table, write_result
from vramtune.units import GIB, MIB

HEADS, NUM_DOUBLE, NUM_SINGLE = 64, 10, 27
"""1024 channels."""
STEPS = {"height": 16, "width": 16, "max_sequence_length": 16, "num_inference_steps": 2, "output_type": "pt"}
VRAM_GIB = 0.75
SLACK_GIB = 0.3
"""What calls need besides weights: activations on the device's side of the host, Python, the libraries."""


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ram-gb", type=float, nargs="+", default=[0.5, 1.0, 4.0])
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "GIB"), help="what a fresh process does")
    parser.add_argument("--write", metavar="FOLDER", help="what another one does")
    parser.add_argument("--into-memory", nargs=2, metavar=("FOLDER", "GIB"), help="what a third one does")
    parser.add_argument("--in-memory", action="store_true", help="what a fourth one does")
    options = parser.parse_args()
    if options.write:
        make().save_pretrained(options.write)
    elif options.in_memory:
        print(json.dumps(in_memory()))
    elif options.into_memory:
        print(json.dumps(into_memory(Path(options.into_memory[0]), float(options.into_memory[1]))))
    elif options.one:
        print(json.dumps(one(Path(options.one[0]), float(options.one[1]))))
    else:
        with tempfile.TemporaryDirectory() as folder:
            child("--write", folder)
            rows = [json.loads(child("--one", folder, str(ram_gb)).splitlines()[-1]) for ram_gb in options.ram_gb]
            refused = json.loads(child("--into-memory", folder, "1.0").splitlines()[-1])
        tuned = json.loads(child("--in-memory").splitlines()[-1])
        write_result("host_memory", text(rows, refused, tuned))


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
    """Reads the process's anonymous memory, less what is the device's, until it is stopped."""

    def __init__(self, sim: Any) -> None:
        super().__init__(daemon=True)
        self.peak_bytes, self._sim, self._is_over = 0, sim, threading.Event()

    def run(self) -> None:
        """Keep the highest."""
        while not self._is_over.wait(0.005):
            self.peak_bytes = max(self.peak_bytes, status_bytes("RssAnon") - self._sim.memory_allocated())

    def stop(self) -> int:
        """The highest that was seen."""
        self._is_over.set()
        self.join()
        return self.peak_bytes


def status_bytes(name: str) -> int:
    """A figure of this process now, as Linux calls it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def limit_data(folder: Path, ram_gb: float) -> None:
    """Let the system refuse more private memory than there may be."""
    more_bytes = round((ram_gb + VRAM_GIB + SLACK_GIB) * GIB) + file_bytes(folder)
    resource.setrlimit(resource.RLIMIT_DATA, (status_bytes("VmData") + more_bytes,) * 2)


def file_bytes(folder: Path) -> int:
    """Of all weights in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def one(folder: Path, ram_gb: float) -> dict[str, Any]:
    """Load the pipeline, call it twice, and say what that held."""
    import diffusers
    import torch

    import vramtune

    sim = used_once()
    limit_data(folder, ram_gb)
    before, began = status_bytes("RssAnon"), time.perf_counter()
    watch = Watch(sim)
    watch.start()
    pipe, tuned = vramtune.load(
        diffusers.FluxPipeline, folder, VRAM_GIB, ram_gb=ram_gb, device="sim", call_kwargs=STEPS, progress=False
    )
    loaded_bytes, loaded_seconds = watch.peak_bytes - before, time.perf_counter() - began
    before_file_bytes = status_bytes("RssFile")
    sums = [
        float(pipe("a photo of a cat", generator=torch.Generator().manual_seed(0), **STEPS).images.sum()) for _ in "12"
    ]
    estimate = tuned.plan.estimate
    return {
        "weight_bytes": file_bytes(folder),
        "ram_gb": ram_gb,
        "planned_bytes": estimate.host_bytes,
        "locked_bytes": estimate.locked_bytes,
        "file_bytes": estimate.file_bytes,
        "loaded_bytes": max(loaded_bytes, 0),
        "loaded_seconds": loaded_seconds,
        "peak_bytes": watch.stop() - before,
        "left_file_bytes": status_bytes("RssFile") - before_file_bytes,
        "sums": sums,
    }


def into_memory(folder: Path, ram_gb: float) -> dict[str, Any]:
    """Load the pipeline as it is done without us, weights in memory, within the same limit; whether the system refused."""
    import diffusers
    import torch

    used_once()
    limit_data(folder, ram_gb)
    pipe = diffusers.FluxPipeline.from_pretrained(folder)
    try:
        with torch.no_grad():
            for parameter in pipe.transformer.parameters():
                parameter.data = parameter.data.clone()
    except (RuntimeError, MemoryError) as error:
        return {"is_refused": True, "error": str(error).splitlines()[0]}
    return {"is_refused": False}


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

    sim, start = used_once(), status_bytes("RssAnon")
    pipe = make()
    gc.collect()
    before = status_bytes("RssAnon")
    watch = Watch(sim)
    watch.start()
    vramtune.autotune(pipe, VRAM_GIB, device="sim", call_kwargs=STEPS, progress=False)
    peak_bytes = watch.stop()
    return {"weight_bytes": before - start, "peak_bytes": peak_bytes - start}


def text(rows: list[dict[str, Any]], refused: dict[str, Any], tuned: dict[str, Any]) -> list[str]:
    """The result as a page."""
    sums = {value for row in rows for value in row["sums"]}
    names = ("planned_bytes", "locked_bytes", "file_bytes", "loaded_bytes", "peak_bytes", "left_file_bytes")
    in_memory = f"was refused by the system ({refused['error']})" if refused["is_refused"] else "was not refused"
    return [
        "# What a process holds of the host when its weights stay in files",
        "",
        *environment("python -m benchmarks.host_memory", gpu="simulated GPU"),
        "",
        f"A FLUX.1 of {rows[0]['weight_bytes'] / GIB:.2f} GiB in files, within {VRAM_GIB} GiB of a simulated GPU. Measured: anonymous "
        "memory, page-locked included, everything else that the calls need included, without what the process held before and without "
        f"the device's memory, which is the host's too. The system refuses more than `ram_gb` and {SLACK_GIB} GiB of it (RLIMIT_DATA, "
        "beside the mapped files and the device's memory, which count there). Last column: what of the files is mapped in after the "
        "calls, beyond what was before them. All in MiB.",
        "",
        *table(
            [
                "`ram_gb`",
                "planned",
                "of it page-locked",
                "stays in files",
                "measured, loading",
                "measured, two calls",
                "files, after",
            ],
            [[str(row["ram_gb"]), *(f"{row[name] / MIB:.0f}" for name in names)] for row in rows],
        ),
        "",
        f"The outputs of all calls have {'one sum' if len(sums) == 1 else 'different sums'}. Loaded into memory within the limit of "
        f"`ram_gb=1`, the same pipeline {in_memory}.",
        "",
        f"Tuned in memory, a pipeline of {tuned['weight_bytes'] / MIB:.0f} MiB held {tuned['peak_bytes'] / MIB:.0f} MiB of the host at the "
        f"most meanwhile, without the device's memory: {tuned['peak_bytes'] / tuned['weight_bytes']:.2f} times as much.",
    ]


if __name__ == "__main__":
    main()
