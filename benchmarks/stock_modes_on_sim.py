"""What do diffusers' own offload modes cost on the simulated accelerator?

    python -m benchmarks.stock_modes_on_sim

Runs the seven tiny pipelines of the tests in every mode, twice, and writes the second call's counters to
`benchmarks/results/stock_modes_sim_<date>.md`. Needs a C++ compiler and no GPU; every run gives the same digits.
"""

import argparse
import datetime
import gc
import importlib.metadata
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from tests import tiny_pipelines
from tests.simgpu import load
from tests.simgpu.prediction import RATES
from tests.simgpu.stock_modes import MODES, MeasuredCall, call, on_cpu

COLUMNS = """mode, peak KB, copied in KB, copied out KB, copies in, copies out, synchronisations, blocking copies,
compute ms, copying in ms, copying out ms, call ms, x resident, bits equal CPU's""".replace("\n", " ").split(", ")
LEGEND = """
A call of two steps that follows another one, seconds of virtual time, 1 KB = 1000 bytes. *Copied in*: host to
device. *Copied out*: device to host, the finished images included, `item()` not; fully resident copies out nothing
else, so the rest is weights that nobody changed. *Synchronisations*: calls of `synchronize` on a stream, an event or
the device (one of them ends the measurement). *Blocking copies*: copies and reads, such as `item()`, for which the
host waited. *Compute*, *copying in*, *copying out*: how long each engine was busy; what they add up to beyond the
call's time overlapped.

Every mode is diffusers' own, switched on as its documentation says; group offload with one block per group.
LTX at block level excludes the VAE: its group is loaded by a hook on `forward`, the pipeline calls `decode`, and the
call fails for weights left on the CPU.
"""


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    name = f"stock_modes_sim_{datetime.date.today()}.md"
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results") / name)
    output = parser.parse_args().output
    torch.set_num_threads(1)  # the operations are tiny
    load().set_rates(**RATES)
    text = "\n".join(report())
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)
    print(text, f"Written to {output}.", sep="\n")


def report() -> Iterator[str]:
    """The lines of the result file."""
    packages = ("torch", "diffusers", "accelerate", "transformers")
    yield "# Stock diffusers offload modes on the simulated accelerator\n"
    yield f"`python -m benchmarks.stock_modes_on_sim`, {datetime.date.today()}; "
    yield ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages) + ".  "
    yield f"Rates: {', '.join(f'{key} {value:g}' for key, value in asdict(load().rates()).items())}."
    yield LEGEND
    for name in tiny_pipelines.CALL:
        yield from section(name)


def section(name: str) -> Iterator[str]:
    """One pipeline's table."""
    calls = {mode: measure(name, mode) for mode in MODES}
    yield f"## {name}, {weight_bytes(name) / 1e3:.1f} KB of weights and buffers\n"
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|---{'|--:' * (len(COLUMNS) - 1)}|"
    for mode, measured in calls.items():
        yield row(mode, measured, resident=calls["resident"], expected=on_cpu(name))
    yield ""


def measure(name: str, mode: str) -> MeasuredCall:
    """The second call of a new pipeline in that mode, on a device that holds nothing else."""
    gc.collect()
    pipe = tiny_pipelines.build(name)
    MODES[mode](pipe)
    call(pipe, name)
    return call(pipe, name)


def row(mode: str, measured: MeasuredCall, *, resident: MeasuredCall, expected: torch.Tensor) -> str:
    """One line of a table."""
    counted = measured.counters
    cells = (
        mode,
        f"{measured.peak_bytes / 1e3:.1f}",
        f"{counted.moved_bytes / 1e3:.1f}",
        f"{counted.moved_back_bytes / 1e3:.1f}",
        counted.num_copies_in,
        counted.num_copies_out,
        counted.num_synchronizes,
        counted.num_blocking_copies,
        f"{counted.compute_seconds * 1e3:.2f}",
        f"{counted.copy_in_seconds * 1e3:.2f}",
        f"{counted.copy_out_seconds * 1e3:.2f}",
        f"{measured.seconds * 1e3:.2f}",
        f"{measured.seconds / resident.seconds:.2f}",
        "yes" if torch.equal(measured.output, expected) else "NO",
    )
    return f"| {' | '.join(map(str, cells))} |"


def weight_bytes(name: str) -> int:
    """Bytes of all parameters and buffers, tied ones once."""
    modules = (c for c in tiny_pipelines.build(name).components.values() if isinstance(c, torch.nn.Module))
    tensors = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
    return sum(t.nbytes for t in tensors.values())


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # diffusers' Euler scheduler
    main()
