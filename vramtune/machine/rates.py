"""How fast an accelerator copies and computes, timed by its own events in about half a second.

Every time is split as `seconds = amount / rate + fixed`, where the amount is FLOPs or bytes and `fixed` is the launch
of a kernel or the latency of a copy: predictions add it up the same way (`roofline.work_seconds`).
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import isqrt
from statistics import median
from typing import NamedTuple

import torch

from vramtune.machine import trials
from vramtune.machine.timing import NUM_QUEUED, PATIENCE_SECONDS, Timing, best_timing, elapsed, queued_seconds
from vramtune.machine.trials import Make
from vramtune.units import MIB

MOST_BYTES = 256 * MIB
MOST_FRACTION = 0.05
"""What a trial holds at once: no more than `MOST_BYTES`, nor this share of what is free (the smallest up to 4 MiB)."""
LEAST_COPIED_BYTES = 16 * MIB
MOST_COPIED_BYTES = 64 * MIB
"""A copy starts beyond the near caches of the host's processor, because weights do not lie in them."""
LEAST_BESIDE_BYTES = 4096
"""Least to copy beside matrix products; otherwise as much as should take half their time."""
BUSY_SECONDS = 5e-3
"""GPU time of what keeps it busy while the host issues what is to be timed without it (`queued_seconds`)."""
NUM_PACES = 5
"""How often the host's pace is timed, at each of three moments."""
HEADS = (("narrow_attention", 64), ("attention", 128), ("wide_attention", 512))
MOST_TOKENS = 8192
"""Attention over more is faster than what an image takes."""
SLOW_RATIO = 1.5
"""From here on an operation is seen to take longer than its traffic."""
LATE_RATIO = 1.1
"""From here on the host is seen to be later than the GPU, with kernels that do next to nothing."""
NUM_STREAMS, ENOUGH_OVERLAP = 3, 0.9
"""Streams on which copies are tried, until one overlaps so far."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What is measured, named as in `vramtune.schema.Device`."""

    pinned_copy_bytes_per_second: float
    pageable_copy_bytes_per_second: float
    readback_bytes_per_second: float
    staging_bytes_per_second: float
    overlap_fraction: float
    copy_latency_seconds: float
    flops_per_second: dict[str, float]
    memory_bytes_per_second: float
    efficiency_fraction: dict[str, float]
    launch_seconds: float
    multiprocessors: int
    elements_per_second: dict[str, float]
    operation_seconds: float


class CopyRates(NamedTuple):
    """Bytes a second, and what a copy takes besides."""

    pinned: float
    pageable: float
    readback: float
    staging: float
    latency_seconds: float


def measure_rates(device: torch.device) -> Rates:
    """Time copies, kernels, and both at once; `device` has an index. All memory is given back.

    The peak rate of a dtype is that of its matrix products under the settings in force (TF32); a dtype that the
    device refuses is left out; `tensorfloat32` is what float32 convolutions make of it. Efficiencies are relative to
    the fastest dtype's peak. Pointwise operations cost their traffic alone (`operations.operation_flops`), and all
    traffic runs at the bandwidth of an addition, but for the kinds whose elements were seen to take longer.
    """
    with torch.accelerator.device_index(device.index):
        most_bytes = min(MOST_BYTES, int(MOST_FRACTION * torch.accelerator.get_memory_info(device)[0]))
        products = _products(most_bytes, device=device)
        fastest = _fastest(products)
        busy = _long_work(products[fastest], device=device, dtype=fastest)
        tiny, _ = trials.tiny_kernel(1, device=device, dtype=torch.float32)
        launch_seconds = queued_seconds(tiny, busy, device=device)
        light, light_seconds = _light_operation(busy, device=device)
        del busy, tiny  # their operands go before others are made
        paces = [_pace(light, device=device)]
        copies = _copy_rates(most_bytes, device=device)
        paces.append(_pace(light, device=device))
        flops_per_second, efficiency_fraction = _arithmetic(products, launch_seconds, most_bytes, device=device)
        additions = best_timing(
            trials.addition, sizes=(2**18, most_bytes // (3 * fastest.itemsize)), device=device, dtype=fastest
        )
        memory = additions.per_second(launch_seconds)
        overlap = _overlap_fraction(products[fastest], copies.pinned, most_bytes, device=device, dtype=fastest)
        elements = _element_rates(memory, launch_seconds, most_bytes, device=device, dtype=fastest)
        paces.append(_pace(light, device=device))
        issued_seconds = median(paces)
        del light
        _give_back(device)
    return Rates(
        pinned_copy_bytes_per_second=copies.pinned,
        pageable_copy_bytes_per_second=copies.pageable,
        readback_bytes_per_second=copies.readback,
        staging_bytes_per_second=copies.staging,
        overlap_fraction=overlap,
        copy_latency_seconds=copies.latency_seconds,
        flops_per_second=flops_per_second,
        memory_bytes_per_second=memory,
        efficiency_fraction=efficiency_fraction,
        launch_seconds=launch_seconds,
        multiprocessors=_multiprocessors(device),
        elements_per_second=elements,
        operation_seconds=issued_seconds if issued_seconds > LATE_RATIO * light_seconds else 0.0,
    )


def _copy_rates(most_bytes: int, *, device: torch.device) -> CopyRates:
    sizes = min(LEAST_COPIED_BYTES, most_bytes), min(MOST_COPIED_BYTES, most_bytes)
    best = partial(best_timing, device=device, dtype=torch.uint8)
    latency_seconds = best(trials.pinned_copy, sizes=(1, 1)).seconds
    pinned, pageable, readback = (
        best(copy, sizes=sizes).per_second(latency_seconds)
        for copy in (trials.pinned_copy, trials.pageable_copy, trials.readback)
    )
    return CopyRates(pinned, pageable, readback, _staging_rate(sizes[1]), latency_seconds)


def _staging_rate(num_bytes: int) -> float:
    """Bytes a second from ordinary into page-locked memory; the best of a few, timed by the host's clock."""
    ordinary = torch.ones(num_bytes, dtype=torch.uint8, device="cpu")
    locked = trials.locked_if_possible(torch.ones(num_bytes, dtype=torch.uint8, device="cpu"))
    best_seconds, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < PATIENCE_SECONDS or best_seconds == float("inf"):
        start = time.perf_counter()
        locked.copy_(ordinary)
        best_seconds = min(best_seconds, time.perf_counter() - start)
    return num_bytes / best_seconds


def _arithmetic(
    products: Mapping[torch.dtype, Timing], launch_seconds: float, most_bytes: int, *, device: torch.device
) -> tuple[dict[str, float], dict[str, float]]:
    """FLOPs a second by dtype, and what share of the fastest one's each kind of operation reaches."""
    fastest = _fastest(products)

    def rate(make: Make, first: int, last: int, dtype: torch.dtype = fastest) -> float:
        return best_timing(make, sizes=(first, last), device=device, dtype=dtype).per_second(launch_seconds)

    peaks = {dtype: timing.per_second(launch_seconds) for dtype, timing in products.items()}
    convolution = rate(trials.convolution, 1, most_bytes // MIB)
    float32_convolution = rate(trials.convolution, 1, most_bytes // (2 * MIB), torch.float32)
    attention = {
        kind: rate(partial(trials.attention, width=width), 512, min(MOST_TOKENS, most_bytes // 5120))
        for kind, width in HEADS
    }
    reached = {"convolution": convolution, **attention}
    return (
        {str(dtype).removeprefix("torch."): peak for dtype, peak in peaks.items()}
        | {"tensorfloat32": float32_convolution * peaks[fastest] / convolution},
        {"matmul": 1.0, **{kind: min(1.0, value / peaks[fastest]) for kind, value in reached.items()}, "memory": 1.0},
    )


def _fastest(products: Mapping[torch.dtype, Timing]) -> torch.dtype:
    return min(products, key=lambda dtype: products[dtype].seconds / products[dtype].amount)


def _products(most_bytes: int, *, device: torch.device) -> dict[torch.dtype, Timing]:
    """The timing of matrix products by dtype."""
    products = {}
    for dtype in DTYPES:
        sizes = 512, isqrt(most_bytes // (3 * dtype.itemsize))
        try:
            products[dtype] = best_timing(trials.matmul, sizes=sizes, device=device, dtype=dtype)
        except (NotImplementedError, TypeError):  # how PyTorch's backends say that they lack a dtype
            if dtype is torch.float32:
                raise
    return products


def _multiprocessors(device: torch.device) -> int:
    properties = torch.get_device_module(device).get_device_properties(device)
    return int(getattr(properties, "multi_processor_count", 1))


def _element_rates(
    memory: float, launch_seconds: float, most_bytes: int, *, device: torch.device, dtype: torch.dtype
) -> dict[str, float]:
    """By kind, what one multiprocessor gets through; kinds that their traffic accounts for are left out."""
    rates, multiprocessors = {}, _multiprocessors(device)
    for kind, make, share in (
        ("strided", trials.strided, multiprocessors),
        ("group_norm", trials.group_norm, min(32, multiprocessors)),
    ):
        timing = best_timing(make, sizes=(2**18, most_bytes // (4 * dtype.itemsize)), device=device, dtype=dtype)
        seconds = timing.seconds - launch_seconds
        traffic_seconds = timing.amount / memory
        if seconds > SLOW_RATIO * traffic_seconds:
            own_seconds = seconds - traffic_seconds if kind == "group_norm" else seconds
            rates[kind] = timing.size / own_seconds / share
    return rates


def _light_operation(busy: Callable[[], object], *, device: torch.device) -> tuple[Callable[[], object], float]:
    """One with the Python around it as in models, and the GPU's time of it.

    A call of `nn.Linear` takes as long: 22.6 microseconds by itself on the host of an H100, where light operations of
    models take 22 (`benchmarks/calls_on_gpu.py`).
    """
    linear = torch.nn.Linear(8, 8, device="meta").to_empty(device=device).requires_grad_(False)  # draws no numbers
    x = torch.ones(8, 8, device=device)
    return lambda: linear(x), queued_seconds(lambda: linear(x), busy, device=device)


def _pace(light: Callable[[], object], *, device: torch.device) -> float:
    """What the host takes for an operation now.

    Not the best: on the host of an H100 it went from 16 to 25 microseconds and back within seconds, calls of models with
    it, so that the fastest moment says less of a call than a usual one; `measure_rates` asks more than once.
    """
    return median(elapsed(light, num_calls=NUM_QUEUED, device=device)[0] for _ in range(NUM_PACES)) / NUM_QUEUED


def _long_work(product: Timing, *, device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """Something that keeps the device busy for about `BUSY_SECONDS`, unless the host loses patience before."""
    multiply, _ = trials.matmul(product.size, device=device, dtype=dtype)
    multiply()
    _, host_seconds = elapsed(multiply, num_calls=1, device=device)
    num_products = max(1, int(min(BUSY_SECONDS / product.seconds, 2 * PATIENCE_SECONDS / host_seconds)))

    def work() -> None:
        for _ in range(num_products):
            multiply()

    return work


def _overlap_fraction(
    product: Timing, pinned_bytes_per_second: float, most_bytes: int, *, device: torch.device, dtype: torch.dtype
) -> float:
    """How long a pinned copy takes alone, as a share of how long it takes beside matrix products; at most 1.

    The best of a few streams: one may share the compute stream's queue of the hardware, and wait for its kernels.
    """
    copied_bytes = max(LEAST_BESIDE_BYTES, int(2 * product.seconds * pinned_bytes_per_second))
    copied_bytes = min(copied_bytes, MOST_COPIED_BYTES, most_bytes)
    multiply, _ = trials.matmul(product.size, device=device, dtype=dtype)
    copy, _ = trials.pinned_copy(copied_bytes, device=device, dtype=torch.uint8)
    main = torch.accelerator.current_stream(device)
    start, end = (torch.Event(device=device, enable_timing=True) for _ in range(2))

    def copy_seconds(side: torch.Stream, num_products: int) -> float:
        side.wait_stream(main)
        for _ in range(num_products):
            multiply()
        with side:
            start.record(side)
            copy()
            end.record(side)
        torch.accelerator.synchronize(device)
        return start.elapsed_time(end) / 1e3

    shares = []
    for _ in range(NUM_STREAMS):
        side = torch.Stream(device=device)
        copy_seconds(side, 4)  # the stream's first use
        alone, beside = (min(copy_seconds(side, num_products) for _ in range(3)) for num_products in (0, 4))
        shares.append(min(1.0, alone / beside))
        logger.debug("a copy of %d bytes: %.3g s alone, %.3g s beside matrix products", copied_bytes, alone, beside)
        if shares[-1] >= ENOUGH_OVERLAP:
            break
    return max(shares)


def _give_back(device: torch.device) -> None:
    torch.accelerator.synchronize(device)
    torch.accelerator.empty_cache()
    if device.type == "cuda":  # a backend outside PyTorch may lack this cache, and asking would crash
        torch._C._host_emptyCache()  # `torch.accelerator.empty_host_cache` is younger than PyTorch 2.11
