"""What becomes `torch.sim`: of `torch.cuda`, what diffusers, accelerate and vramtune use; and, for the tests,
the simulation's own settings and counters.

Two devices, `sim:0` and `sim:1`. Operations run on the CPU, so numbers are the CPU's bit for bit. Inference only.
Not simulated: memory inside a kernel, segments of a caching allocator (reserved is what is allocated), the time
that allocating takes, autocast. All host threads count as one. Memory freed after `record_stream` counts as
allocated until that stream has passed.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any, Literal

import torch

from tests.simgpu.build import extension

_sim = extension()

Device = torch.device | str | int | None
DEFAULT_CAPACITY_BYTES = 2**40


# ---------------------------------------------------------------------------------------------------
# The simulation


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How fast every simulated device is, and with it what everything costs in virtual time.

    An operation takes `launch_seconds + max(flops / flops_per_second, bytes / memory_bytes_per_second)` on the
    device's one compute engine, in the order in which operations are asked for:

    * flops, a multiply and an add counting two, as in `torch.utils.flop_counter`, at one rate for every dtype:
      `mm`, `bmm`, `addmm`, `baddbmm` of (m, k) and (k, n): 2 m n k per matrix; `mv`, `dot`: 2 m k; `convolution`:
      2 x elements of the output x weights / output channels, transposed: 2 x elements of the input x weights /
      input channels; attention with queries (b, h, q, d), keys (b, h, k, d), values (b, h, k, v):
      2 b h q k (d + v), causal or not; bitsandbytes' product of int8, at twice the rate, m n k; everything else 0.
    * bytes: every tensor argument once, every result once, one that is changed in place both times; of an
      expanded tensor the bytes it has, not those it shows. `embedding`, `index`, `index_select` and `gather` read
      only as much as they write: their results twice and nothing else.
    * Operations are what a `TorchDispatchMode` sees of the same call on the CPU, where attention
      (`_scaled_dot_product_flash_attention_for_cpu`, with its logsumexp), convolution, layer norm and group norm
      are one each; `clone`, `_to_copy`, `copy_` and `repeat` are a copy on the device, its source and destination.
      Views, `_unsafe_view` and empty tensors cost nothing.

    A copy takes `copy_latency_seconds + bytes of the source / rate` on the device's engine for that direction.
    From and to pinned memory with `non_blocking=True` only its stream waits for it; otherwise the host does.
    `item()` is a copy out at the pageable rate that counts in no copy counter; operations whose result's shape the
    host needs (`nonzero`, an index by a mask, ...) make it wait as well.

    An operation starts when its stream, the host and the engine have all come that far. Each enqueued operation,
    copy, event record and event wait costs the host `enqueue_seconds`, each `query()` `query_seconds`.

    The names are `vramtune.schema.Device`'s where it has the same thing.
    """

    flops_per_second: float = 50e12
    memory_bytes_per_second: float = 1e12
    launch_seconds: float = 5e-6
    pinned_copy_bytes_per_second: float = 25e9
    """Host to device from pinned memory."""
    pageable_copy_bytes_per_second: float = 6e9
    """Host to device from ordinary memory."""
    pinned_readback_bytes_per_second: float = 25e9
    """Device to pinned host memory."""
    readback_bytes_per_second: float = 6e9
    """Device to ordinary host memory."""
    peer_copy_bytes_per_second: float = 20e9
    """Between devices, on the source's engine for copies out."""
    copy_latency_seconds: float = 10e-6
    enqueue_seconds: float = 0.0
    query_seconds: float = 1e-6

    def __post_init__(self) -> None:
        """Refuse what would stop the clocks or turn them back."""
        for name, rate in asdict(self).items():
            if rate < 0 or (rate == 0 and name.endswith("per_second")):
                raise ValueError(f"{name} must be above 0; got {rate}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What one device did since `reset()`."""

    moved_bytes: int
    """Host to device."""
    num_copies_in: int
    pageable_in_bytes: int
    """Of them from ordinary, not pinned, host memory."""
    moved_back_bytes: int
    """Device to host; without `item()`."""
    num_copies_out: int
    pageable_out_bytes: int
    num_blocking_copies: int
    """Copies, and operations such as `item()` and `nonzero()`, for which the host waited."""
    num_staged_copies: int
    """Copies asked for with `non_blocking=True` from or to pageable memory: the host stood still all the same."""
    num_synchronizes: int
    """Calls of `synchronize` on the device, a stream or an event."""
    host_wait_seconds: float
    """Virtual time for which the host stood still in all of these."""
    num_operations: int
    flops: float
    compute_seconds: float
    """Virtual time for which the compute engine was busy; the next two: the copy engines."""
    copy_in_seconds: float
    copy_out_seconds: float
    num_allocations: int
    num_out_of_memory: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One entry of the timeline, in virtual seconds since `reset()`."""

    engine: Literal["compute", "copy in", "copy out"]
    name: str
    """As PyTorch calls it, with the label of the moment: `aten::addmm [transformer.proj_out]`."""
    device: int
    stream: int
    """0 is the default stream."""
    start_seconds: float
    end_seconds: float
    num_bytes: int
    flops: float


_rates = Rates()


def rates() -> Rates:
    """The rates in force."""
    return _rates


def set_rates(**changes: float) -> None:
    """Change some of the `Rates`, by name; operations that are already enqueued keep their times."""
    global _rates
    _rates = replace(_rates, **changes)
    _sim.set_rates(_sim.Rates(*astuple(_rates)))


def set_capacity(capacity_bytes: int, device: Device = None) -> None:
    """What the device's memory holds; what is allocated already stays, even if it is more."""
    if capacity_bytes < 0:
        raise ValueError(f"capacity_bytes must not be negative; got {capacity_bytes}")
    _sim.set_capacity(capacity_bytes, _index(device))


def run_whole(library: str, *operations: str) -> None:
    """Run these operations of another library as one kernel each, the CPU's, as a GPU does; once in a process."""
    for operation in operations:
        _sim.run_whole(library, operation)


def virtual_seconds() -> float:
    """The host's clock since `reset()`: what a stopwatch would show, so synchronise first, as on a GPU."""
    seconds: float = _sim.virtual_seconds()
    return seconds


def host_clock() -> int:
    """The host's clock in picoseconds, whatever `reset()` did."""
    time: int = _sim.host_clock()
    return time


def set_host_clock(time: int) -> None:
    """Turn it: ahead for what the host does by itself, and back to where another of its threads is (`staging`)."""
    _sim.set_host_clock(time)


def counters(device: Device = None) -> Counters:
    """What a device did since `reset()`."""
    return Counters(**_sim.counters(_index(device)))


def timeline() -> list[Operation]:
    """What ran when on which engine and stream since `reset()`, on all devices, in the order it was asked for."""
    fields = tuple(Operation.__dataclass_fields__)
    return [Operation(**dict(zip(fields, row, strict=True))) for row in _sim.timeline()]


def reset() -> None:
    """Wait for everything, then start clock, counters, peaks and timeline at zero; rates and capacities stay."""
    _sim.reset()


@contextlib.contextmanager
def labelled(**modules: torch.nn.Module) -> Iterator[None]:
    """Meanwhile every operation's name carries that of the innermost of these modules' modules that runs it."""
    stack, handles = [""], []

    def enter(name: str) -> None:
        stack.append(name)
        _sim.set_label(name)

    def leave() -> None:
        stack.pop()
        _sim.set_label(stack[-1])

    for prefix, root in modules.items():
        for path, module in root.named_modules():
            name = f"{prefix}.{path}" if path else prefix
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: enter(name)))
            handles.append(module.register_forward_hook(lambda *_: leave(), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        _sim.set_label("")


def pinned_memory_allocated() -> int:
    """Bytes of pinned host memory, to the byte: unlike CUDA's, its allocator rounds nothing."""
    num_bytes: int = _sim.pinned_bytes()[0]
    return num_bytes


def max_pinned_memory_allocated() -> int:
    """The most since `reset()`."""
    num_bytes: int = _sim.pinned_bytes()[1]
    return num_bytes


def set_pinned_capacity(capacity_bytes: int) -> None:
    """What may be pinned at once; what is stays, even if it is more."""
    _sim.set_pinned_capacity(capacity_bytes)


# ---------------------------------------------------------------------------------------------------
# As in torch.cuda


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProperties:
    """What `get_device_properties` tells."""

    name: str
    total_memory: int


class device:
    """`with torch.sim.device(1):` makes it the current one; `torch.load` asks for it too."""

    def __init__(self, device: Device) -> None:
        self.index = _index(device)

    def __enter__(self) -> None:
        self.previous = current_device()
        set_device(self.index)

    def __exit__(self, *exception: object) -> None:
        set_device(self.previous)


def _index(device: Device) -> int:
    if isinstance(device, int):
        device = torch.device("sim", device)
    index = torch.device("sim" if device is None else device).index
    if index is None:
        return current_device()
    if index >= device_count():
        raise ValueError(f"there is no sim:{index}; there are {device_count()} simulated devices")
    return index


Stream, Event = torch.Stream, torch.Event  # they are the accelerator's where no device is named
current_device = torch.accelerator.current_device_index
set_device = torch.accelerator.set_device_index
set_stream = torch.accelerator.set_stream
empty_cache = torch.accelerator.empty_cache


def is_available() -> bool:
    return True


def is_initialized() -> bool:
    return True


def device_count() -> int:
    num_devices: int = _sim.num_devices()  # torch.accelerator.device_count would ask this very function
    return num_devices


def get_device_name(device: Device = None) -> str:
    return "simulated accelerator"


def get_device_properties(device: Device = None) -> DeviceProperties:
    return DeviceProperties(name=get_device_name(device), total_memory=mem_get_info(device)[1])


def stream(stream: torch.Stream) -> torch.Stream:
    return stream  # a context manager itself


def current_stream(device: Device = None) -> torch.Stream:
    return torch.accelerator.current_stream(_index(device))


def synchronize(device: Device = None) -> None:
    torch.accelerator.synchronize(_index(device))


def mem_get_info(device: Device = None) -> tuple[int, int]:
    return torch.accelerator.get_memory_info(_index(device))


def memory_stats(device: Device = None) -> dict[str, Any]:
    return torch.accelerator.memory_stats(_index(device))


def memory_allocated(device: Device = None) -> int:
    return torch.accelerator.memory_allocated(_index(device))


def max_memory_allocated(device: Device = None) -> int:
    return torch.accelerator.max_memory_allocated(_index(device))


def memory_reserved(device: Device = None) -> int:
    return torch.accelerator.memory_reserved(_index(device))


def max_memory_reserved(device: Device = None) -> int:
    return torch.accelerator.max_memory_reserved(_index(device))


def reset_peak_memory_stats(device: Device = None) -> None:
    torch.accelerator.reset_peak_memory_stats(_index(device))


# Without a generator of its own an operation draws from the CPU's, which `torch.manual_seed` seeds.


def manual_seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    manual_seed(seed)


def get_rng_state(device: Device = None) -> torch.Tensor:
    return torch.get_rng_state()


def set_rng_state(state: torch.Tensor, device: Device = None) -> None:
    torch.set_rng_state(state)


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.float16, torch.bfloat16]


def _is_in_bad_fork() -> bool:
    return False
