"""Remakes the traces that come with the package, of each catalog model's call as its model card has it.

    python -m benchmarks.shipped_traces            # all, half an hour
    python -m benchmarks.shipped_traces sdxl sd15  # these
    python -m benchmarks.shipped_traces --reserved # what the allocators make of those that are there: minutes

A trace holds for the versions that it was made under, which are in it. `tests/catalog/test_shipped.py` holds two of them
against fresh ones.
"""

import argparse
import gc
import time
from dataclasses import replace
from pathlib import Path

from vramtune import catalog
from vramtune.catalog.shipped import shipped_file, shipped_trace
from vramtune.machine.gpus import gpus
from vramtune.pricing.reserved import with_reserved
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
    pipe, call_kwargs = catalog.load(name), entry.call()
    trace = follow(pipe, call_kwargs=call_kwargs, allow=PERMISSIONS, try_steps=FEW_STEPS)
    if len(trace.exact_steps) > 1:  # or each step is a call of its own, and to try them all takes hours
        trace = follow(pipe, call_kwargs=call_kwargs, allow=PERMISSIONS, try_steps=try_steps)
    return reserved(trace)


def reserved(trace: Trace) -> Trace:
    """The trace, with what the listed GPUs' allocators make of it now."""
    calls = tuple(replace(call, reserved={}) for call in trace.calls)
    return with_reserved(replace(trace, calls=calls), {gpu.workspace_bytes for gpu in gpus()})


def main() -> None:
    """Write those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of `vramtune models`; left out: all of them")
    parser.add_argument("--reserved", action="store_true", help="follow no call again")
    options, total = parser.parse_args(), 0
    for name in options.names or catalog.names():
        began = time.perf_counter()
        known = shipped_trace(name) if options.reserved else None
        trace = made(name) if known is None else reserved(known)
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
