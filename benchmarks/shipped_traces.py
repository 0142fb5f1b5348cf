"""Remakes the traces that come with the package, of each catalog model's call with its own settings.

    python -m benchmarks.shipped_traces            # all, some ten minutes
    python -m benchmarks.shipped_traces sdxl sd15  # these

A trace holds for the versions that it was made under, which are in it. `tests/catalog/test_shipped.py` holds two of them
against fresh ones.
"""

import argparse
import gc
import time
from dataclasses import replace
from pathlib import Path

from vramtune import catalog
from vramtune.catalog.shipped import shipped_file
from vramtune.machine.gpus import gpus
from vramtune.pricing.stages import with_reserved
from vramtune.profiler.follow import follow
from vramtune.schema import PERMISSIONS, Trace

STEPS = range(1, 51)
"""Numbers of steps that are tried: of each of these is known whether the trace stands for it."""
FEW_STEPS = (10, 20)
"""Those that are tried before all of them are."""


def made(name: str, *, try_steps: range = STEPS) -> Trace:
    """The trace of a catalog model, followed under each permission, with what the listed GPUs' allocators make of it."""
    entry = catalog.find(name)
    assert entry is not None, name
    pipe = catalog.load(name)
    trace = follow(pipe, call_kwargs=entry.images(), allow=PERMISSIONS, try_steps=FEW_STEPS)
    if len(trace.exact_steps) > 1:  # or each step is a call of its own, and to try them all takes hours
        trace = follow(pipe, call_kwargs=entry.images(), allow=PERMISSIONS, try_steps=try_steps)
    # finer groups change plans, and with them what docs and golden files show: those and all traces are remade at once, or none
    components, in_float8 = (
        tuple(replace(component, finer_groups=()) for component in each) for each in (trace.components, trace.in_float8)
    )
    trace = replace(trace, components=components, in_float8=in_float8)
    return with_reserved(trace, {gpu.workspace_bytes for gpu in gpus()})


def main() -> None:
    """Write those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of `vramtune models`; left out: all of them")
    total = 0
    for name in parser.parse_args().names or catalog.names():
        began = time.perf_counter()
        trace = made(name)
        path = Path(str(shipped_file(name)))
        path.parent.mkdir(exist_ok=True)
        trace.save(path)
        total += path.stat().st_size
        took = time.perf_counter() - began
        print(
            f"{name}: {path.stat().st_size / 1e3:.0f} KB, {len(trace.exact_steps)} numbers of steps, {took:.0f} s",
            flush=True,
        )
        del trace
        gc.collect()
    print(f"{total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
