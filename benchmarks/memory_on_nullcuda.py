"""Memory of every call of the catalog's components, at real size: predicted beside PyTorch's own allocator, without a GPU.

    .venv-nullcuda/bin/python -m tests.nullcuda .venv-nullcuda/bin/python -m benchmarks.memory_on_nullcuda
    ... -m benchmarks.memory_on_nullcuda --only sdxl wan2.1-1.3b

Runs on the null card (`tests/nullcuda`): the allocator and the choice of kernels are PyTorch's, kernels do nothing, and
weights are memory that is never touched. Each model has a process of its own. Each different call of a component, with
the inputs that the pipeline gives it, runs by itself, and its tape is compared with the allocator's events. Writes
`benchmarks/results/memory_nullcuda_<date>.json` as soon as a model is done, and the table of the same name; a run that
was cut goes on with the models that have no rows yet; `--only` does the named ones again.
"""

import argparse
import gc
import json
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.results_file import environment, result_path, table, write_result
from tests.nullcuda.card import card
from tests.nullcuda.values import ValuesOfSmall
from vramtune import api, catalog
from vramtune.caching_allocator import reserved_peak_bytes
from vramtune.contract import CALL, entries, modules_of
from vramtune.contract.tracing import call_parameters
from vramtune.layout import SMALL_REQUEST_BYTES, rounded_bytes
from vramtune.offload.computed import hook_computed, unhook_computed
from vramtune.offload.pieces import make_arenas
from vramtune.pricing.arenas import best_arenas, repeated
from vramtune.profiler import record
from vramtune.profiler.execution import ComponentMethod, Execution
from vramtune.profiler.known_values import LARGEST_TWIN_ELEMENTS
from vramtune.profiler.tensor_trees import map_tensors
from vramtune.profiler.tracker import Allocation
from vramtune.schema import call_name
from vramtune.units import MIB

NAME = "memory_nullcuda"
MOST_EVENTS = 2_000_000
CARD_BYTES = 300 * 10**9
COPY_LIMIT_BYTES = 1 << 20
SMALL_ELEMENTS = LARGEST_TWIN_ELEMENTS
"""Of masks, positions, lengths, which have values. The trace follows the values of as many."""
GOAL_BYTES, GOAL_FRACTION = 2 * MIB, 0.001
"""How far off reserved bytes may be: the larger of the two."""
NUM_SIZES = 6
LONGEST_TAPE = 1_500_000
GPU = "RTX 4060"
"""Which the null card claims to be. What is allocated depends on it hardly: by its architecture's kernels."""
HEADER = [
    *["model", "call", "predicted allocated", "allocated", "predicted reserved", "reserved", "difference", "goal"],
    *["predicted in arenas", "in arenas"],
]

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], choices=catalog.names(), metavar="MODEL")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(list(rows_of(options.one))))
        return
    path = result_path(NAME).with_suffix(".json")
    rows: list[Row] = json.loads(path.read_text()) if path.exists() else []
    done = {row["model"] for row in rows} - set(options.only)
    todo = [name for name in options.only or catalog.names() if name not in done]
    for model in tqdm(todo, unit="model"):
        found = in_a_process_of_its_own(model)
        rows = [row for row in rows if row["model"] != model] + found
        rows.sort(key=lambda row: catalog.names().index(row["model"]))
        path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
        write_result(NAME, report(rows))
    print(*report(rows), sep="\n")


def in_a_process_of_its_own(model: str) -> list[Row]:
    """A model's rows; one that says why, where it could not be run."""
    command = [sys.executable, "-m", "benchmarks.memory_on_nullcuda", "--one", model]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        rows: list[Row] = json.loads(done.stdout.splitlines()[-1])
        return rows
    print(done.stderr, file=sys.stderr)
    last = done.stderr.strip().rpartition("\n")[2] if done.returncode > 0 else f"killed by signal {-done.returncode}"
    return [{"model": model, "call": None, "outcome": last[:200]}]


# ---------------------------------------------------------------------------------------------------
# One model


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedCall:
    """A call of a component as it was followed, and what it needs to be made again."""

    execution: Execution
    inputs: Any
    """Known ones with their values, the others on the meta device."""
    dtypes: Mapping[str, torch.dtype]
    """Of the component's weights at that moment, by name: a pipeline may cast them."""
    is_tiled: bool


def rows_of(model: str) -> Iterator[Row]:
    """Every different call of a model's components, predicted and run."""
    card().total_bytes, card().copy_limit_bytes = CARD_BYTES, COPY_LIMIT_BYTES
    entry = next(entry for entry in catalog.models() if entry.name == model)
    kwargs = entry.call()
    pipe = catalog.load(model)
    schedules = {"sigmas", "timesteps"} & kwargs.keys() | {"guidance_schedule"} & call_parameters(pipe, CALL).keys()
    if not schedules:  # which have as many entries as there are steps
        kwargs["num_inference_steps"] = 2
    for row in rows_of_pipeline(pipe, kwargs):
        yield {"model": model, **row}


def rows_of_pipeline(pipe: Any, kwargs: Mapping[str, Any]) -> Iterator[Row]:
    """The same of any pipeline, whose weights are lost."""
    with traced_calls() as calls:
        api.profile(pipe, gpu=GPU, call_kwargs=kwargs, progress=False)
    for call in calls:
        name = call_name(call.execution.component, call.execution.method) + (" (tiled)" if call.is_tiled else "")
        if len(call.execution.tape) > LONGEST_TAPE:
            yield {"call": name, "outcome": f"not run: {len(call.execution.tape)} events, which take long"}
            continue
        try:
            yield {"call": name, **compared(modules_of(pipe)[call.execution.component], call)}
        except Exception as error:  # one that does not run must not cost the others
            yield {"call": name, "outcome": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


@contextmanager
def traced_calls() -> Iterator[list[TracedCall]]:
    """While entered, every trace that is made is listed."""
    found: list[TracedCall] = []
    original = record.trace_call

    def remembering(target: ComponentMethod, inputs: Any, mode: Any, *, is_known: Any, kernels: Any) -> Execution:
        kept = map_tensors(lambda tensor: tensor.clone() if is_known(tensor) else on_meta(tensor), inputs)
        dtypes = {name: tensor.dtype for name, tensor in named_weights(target.module)}
        execution = original(target, inputs, mode, is_known=is_known, kernels=kernels)
        is_tiled = any(not call.execution.permitted and is_like(call.execution, execution) for call in found[-1:])
        found.append(
            TracedCall(execution=execution, inputs=kept, dtypes=dtypes, is_tiled=is_tiled and tiles(target.module))
        )
        return execution

    record.trace_call = remembering
    try:
        yield found
    finally:
        record.trace_call = original


def is_like(first: Execution, second: Execution) -> bool:
    return (first.component, first.method) == (second.component, second.method)


def tiles(module: nn.Module) -> bool:
    return bool(getattr(module, "use_tiling", False))


def on_meta(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def named_weights(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def replace_weights(component: nn.Module, device: str, dtypes: Mapping[str, torch.dtype]) -> None:
    """Have all weights on a device, without values; tied ones stay tied."""
    new: dict[int, torch.Tensor] = {}
    for path, module in component.named_modules():
        for kind in (module._parameters, module._buffers):
            for name, old in kind.items():
                if old is None:
                    continue
                dtype = dtypes[f"{path}.{name}".lstrip(".")]
                tensor = torch.empty_strided(old.shape, old.stride(), dtype=dtype, device=device)
                if isinstance(old, nn.Parameter):
                    tensor = nn.Parameter(tensor, old.requires_grad)
                kind[name] = new.setdefault(id(old), tensor)
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor | list | tuple):  # tables that are no buffers stay on the host
                setattr(module, name, map_tensors(on_host, value))


def compared(module: nn.Module, call: TracedCall, *, most_small_bytes: int = SMALL_REQUEST_BYTES) -> Row:
    """One call on the card, from an empty cache, beside its tape; the order of what is larger than small."""
    replace_weights(module, "cuda", call.dtypes)
    if call.is_tiled:
        module.enable_tiling()  # type: ignore[operator]
    owner, method = entries(module)[call.execution.method]
    args, kwargs = map_tensors(on_card, call.inputs)
    warm_up()
    hook_computed(module, [])  # as under a plan: what `weight_norm` computes is let go, which the tape knows
    held = rests_filled()
    run = partial(getattr(owner, method), *args, **kwargs)
    tape = [entry for entry in call.execution.tape if isinstance(entry, Allocation)]
    with torch.no_grad(), ValuesOfSmall(SMALL_ELEMENTS):
        events, peaks = watched(run)
        in_arenas = compared_in_arenas(run, tape, reserved_peak_bytes(tape))
    unhook_computed(module)
    if call.is_tiled:
        module.disable_tiling()  # type: ignore[operator]
    weight_bytes = sum({id(tensor): tensor.nbytes for _, tensor in named_weights(module)}.values())
    replace_weights(module, "meta", call.dtypes)
    del held
    gc.collect()
    torch.cuda.empty_cache()
    return {
        "weight_bytes": weight_bytes,
        "predicted_allocated_bytes": live_peak_bytes(tape),
        "allocated_bytes": peaks[0],
        "predicted_reserved_bytes": reserved_peak_bytes(tape),
        "reserved_bytes": peaks[1],
        "replayed_bytes": reserved_peak_bytes(events),
        "in_arenas": in_arenas,
        "num_events": [len(tape), len(events)],
        "more_often": sizes_more_often(events, tape),
        "is_in_order": in_order(events, most_small_bytes) == in_order(tape, most_small_bytes),
        "host_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def compared_in_arenas(run: Callable[[], Any], tape: list[Allocation], most_bytes: int) -> dict[str, Any] | None:
    """Two calls one after the other in the arenas that are best by the tape; None where there are none."""
    found = best_arenas((), tuple(repeated(tape, 2)), most_bytes, gives_back=False)
    if found is None:
        return None
    arenas, predicted_bytes = found
    held = rests_filled()
    before_bytes = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    make_arenas(arenas, torch.device("cuda"))
    output = None
    for _ in range(2):
        output = run()
    taken_bytes = torch.cuda.max_memory_reserved() - before_bytes
    del held, output
    return {"arenas": arenas, "predicted_bytes": predicted_bytes, "bytes": taken_bytes}


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor


def on_card(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_meta:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
    return tensor.to("cuda")


def warm_up() -> None:
    """Have cuBLAS take its workspace, which is predicted apart."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        a = torch.empty(64, 64, dtype=dtype, device="cuda")
        nn.functional.linear(a @ a, a, a[0])


def rests_filled() -> list[torch.Tensor]:
    """Tensors in all that is left of the allocator's segments: what is taken from now on is in segments of its own."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    filled = []
    for segment in torch.cuda.memory._snapshot()["segments"]:
        for block in segment["blocks"]:
            rest = block["size"] if block["state"] == "inactive" else 0
            while rest:
                size = min(rest, MIB) if segment["segment_type"] == "small" else rest
                filled.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
                rest -= size
    return filled


def watched(call: Callable[[], Any]) -> tuple[list[Allocation], tuple[int, int]]:
    """The allocator's events in a call, and the most that was allocated and reserved beyond what was before."""
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.memory._record_memory_history(context=None, max_entries=MOST_EVENTS, clear_history=True)
    try:
        output = call()
        snapshot = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    peaks = torch.cuda.max_memory_allocated() - before[0], torch.cuda.max_memory_reserved() - before[1]
    del output
    return allocations(snapshot), peaks


def allocations(snapshot: list[dict[str, Any]]) -> list[Allocation]:
    """The allocator's events as a tape has them."""
    events: list[Allocation] = []
    live: dict[int, tuple[int, int]] = {}
    for number, event in enumerate(snapshot):
        if event["action"] == "alloc":
            live[event["addr"]] = number, event["size"]
            events.append(Allocation(number, event["size"]))
        elif event["action"] == "free_completed" and event["addr"] in live:
            key, num_bytes = live.pop(event["addr"])
            events.append(Allocation(key, -num_bytes))
    return events


def live_peak_bytes(tape: list[Allocation]) -> int:
    live = peak = 0
    for _, num_bytes in tape:
        live += num_bytes
        peak = max(peak, live)
    return peak


def sizes_more_often(events: list[Allocation], tape: list[Allocation]) -> list[tuple[int, int]]:
    """Sizes that the allocator was asked for more often (or less, below 0) than the tape says, the weightiest first."""
    counted = Counter(rounded_bytes(num_bytes) for _, num_bytes in events if num_bytes > 0)
    counted.subtract(num_bytes for _, num_bytes in tape if num_bytes > 0)
    differing = [(size, number) for size, number in counted.items() if number]
    return sorted(differing, key=lambda each: -abs(each[0] * each[1]))[:NUM_SIZES]


def in_order(events: list[Allocation], most_small_bytes: int) -> list[tuple[int, int, bool]]:
    """Which allocation each event is of, its bytes, and whether it is made, of those that are larger: in an arena the order
    decides where a hole is left."""
    numbers: dict[int, int] = {}
    sized = [(key, rounded_bytes(abs(num_bytes)), num_bytes > 0) for key, num_bytes in events]
    large = [each for each in sized if each[1] > most_small_bytes]
    return [(numbers.setdefault(key, len(numbers)), size, is_made) for key, size, is_made in large]


# ---------------------------------------------------------------------------------------------------
# The table


def report(rows: list[Row]) -> list[str]:
    """The file's lines."""
    ran = [row for row in rows if "reserved_bytes" in row]
    off = [abs(difference_bytes(row)) / MIB for row in ran] or [0]
    num_met, num_equal = sum(map(is_met, ran)), sum(not size for size in off)
    arenas = [found for row in ran if (found := row.get("in_arenas"))]
    off_there = [abs(found["predicted_bytes"] - found["bytes"]) / MIB for found in arenas]
    num_alike, furthest = sum(not size for size in off_there), max(off_there, default=0)
    return [
        "# Activations of every catalog model's calls: predicted, and taken by PyTorch's allocator, no GPU",
        "",
        *environment("python -m benchmarks.memory_on_nullcuda", gpu="no GPU: the null card (tests/nullcuda)"),
        "- PyTorch's CUDA build and its caching allocator are real; kernels do nothing, weights are uninitialised. No figure "
        "here was measured on a GPU.",
        "- A call by itself, with the inputs that the pipeline gives it, from an empty cache; inputs, weights and cuBLAS's "
        "workspace have segments of their own, which are not counted. MiB.",
        "- cuDNN takes no workspaces on the null card, so the prediction is that of the tape alone: profiles add copies of "
        "a convolution's images, and for what is not repeated look for the lowest limit that it gets through under.",
        f"- Of {len(ran)} calls of {len({row['model'] for row in ran})} models the reserved bytes of {num_equal} are "
        f"equal, {num_met} are within 2 MiB or 0.1%; largest difference {max(off):.0f} MiB, median {median(off):.0f} MiB.",
        f"- *In arenas*: two calls one after the other, from segments that are there before. {len(arenas)} calls take less "
        f"in those, {num_alike} of them what was predicted to the byte, the furthest off {furthest:.0f} MiB.",
        "- *Tiled*: with the VAE's tiling on. A call twice: with other inputs (a prompt of another length).",
        "",
        *table(HEADER, [cells(row) for row in rows]),
    ]


def difference_bytes(row: Row) -> int:
    """Predicted less real, of reserved bytes."""
    difference: int = row["predicted_reserved_bytes"] - row["reserved_bytes"]
    return difference


def is_met(row: Row) -> bool:
    return abs(difference_bytes(row)) <= max(GOAL_BYTES, GOAL_FRACTION * row["reserved_bytes"])


def cells(row: Row) -> list[str]:
    if "reserved_bytes" not in row:
        return [row["model"], row["call"] or "", *[""] * 5, row["outcome"], "", ""]
    keys = ("predicted_allocated_bytes", "allocated_bytes", "predicted_reserved_bytes", "reserved_bytes")
    figures, found = [f"{row[key] / MIB:.1f}" for key in keys], row.get("in_arenas")
    return [
        row["model"],
        row["call"],
        *figures,
        f"{difference_bytes(row) / MIB:+.1f}",
        "met" if is_met(row) else "missed",
        *(f"{found[key] / MIB:.1f}" if found else "" for key in ("predicted_bytes", "bytes")),
    ]


if __name__ == "__main__":
    main()
