"""How fast an accelerator copies and computes, timed by its own events in about half a second.

Every time is split as `seconds = amount / rate + fixed`, where the amount is FLOPs or bytes and `fixed` is the launch
of a kernel or the latency of a copy: predictions add it up the same way (`roofline.work_seconds`).
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import isqrt

import torch
from torch.nn import functional

from vramtune.units import MIB

ENOUGH_SECONDS = 1e-3
"""Device time of a call from which launches and the resolution of the clock no longer matter."""
PATIENCE_SECONDS = 5e-3
"""Host time for which a call is repeated; one that takes as long is not made larger."""
MOST_BYTES = 256 * MIB
MOST_FRACTION = 0.05
"""What a trial holds at once: no more than `MOST_BYTES`, nor this share of what is free (the smallest up to 4 MiB)."""
LEAST_COPIED_BYTES = 16 * MIB
MOST_COPIED_BYTES = 64 * MIB
"""A copy starts beyond the near caches of the host's processor, because weights do not lie in them."""
LEAST_BESIDE_BYTES = 4096
"""Least to copy beside matrix products; otherwise as much as should take half their time."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Trial = tuple[Callable[[], object], int]
"""What is timed, and the FLOPs or bytes of one call."""
Make = Callable[..., Trial]
"""Makes the trial of a size, on a `device` and in a `dtype`."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What is measured, named as in `vramtune.schema.Device`."""

    pinned_copy_bytes_per_second: float
    pageable_copy_bytes_per_second: float
    readback_bytes_per_second: float
    overlap_fraction: float
    copy_latency_seconds: float
    flops_per_second: dict[str, float]
    memory_bytes_per_second: float
    efficiency_fraction: dict[str, float]
    launch_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The best time of one call, at the size to which it was made to grow."""

    size: int
    amount: float
    seconds: float

    def per_second(self, fixed_seconds: float) -> float:
        """The rate once a fixed cost is taken off; the cost counts as at most nine tenths of the time."""
        return self.amount / max(self.seconds - fixed_seconds, self.seconds / 10)


def measure_rates(device: torch.device) -> Rates:
    """Time copies, kernels, and both at once; `device` has an index. All memory is given back.

    The peak rate of a dtype is that of its matrix products under the settings in force (TF32); a dtype that the
    device refuses is left out. Efficiencies are relative to the fastest dtype's peak. Pointwise operations cost
    their traffic alone (`roofline.operation_flops`), and all traffic runs at the bandwidth of an addition.
    """
    with torch.accelerator.device_index(device.index):
        most_bytes = min(MOST_BYTES, int(MOST_FRACTION * torch.accelerator.get_memory_info(device)[0]))
        best = partial(_best, device=device)
        launch_seconds = best(_tiny_kernel, sizes=(1, 1), dtype=torch.float32).seconds
        latency_seconds = best(_pinned_copy, sizes=(1, 1), dtype=torch.uint8).seconds
        copied = min(LEAST_COPIED_BYTES, most_bytes), min(MOST_COPIED_BYTES, most_bytes)
        pinned, pageable, readback = (
            best(copy, sizes=copied, dtype=torch.uint8).per_second(latency_seconds)
            for copy in (_pinned_copy, _pageable_copy, _readback)
        )
        products = _products(most_bytes, device=device)
        peaks = {dtype: timing.per_second(launch_seconds) for dtype, timing in products.items()}
        fastest = max(peaks, key=peaks.__getitem__)
        convolution = best(_convolution, sizes=(1, most_bytes // MIB), dtype=fastest)
        attention = best(_attention, sizes=(512, most_bytes // 4096), dtype=fastest)
        addition = best(_addition, sizes=(2**18, most_bytes // (3 * fastest.itemsize)), dtype=fastest)
        copied_bytes = min(copied[1], max(LEAST_BESIDE_BYTES, int(2 * products[fastest].seconds * pinned)))
        overlap = _overlap_fraction(products[fastest].size, copied_bytes, device=device, dtype=fastest)
        _give_back(device)
    return Rates(
        pinned_copy_bytes_per_second=pinned,
        pageable_copy_bytes_per_second=pageable,
        readback_bytes_per_second=readback,
        overlap_fraction=overlap,
        copy_latency_seconds=latency_seconds,
        flops_per_second={str(dtype).removeprefix("torch."): peak for dtype, peak in peaks.items()},
        memory_bytes_per_second=addition.per_second(launch_seconds),
        efficiency_fraction={
            "matmul": 1.0,
            "convolution": convolution.per_second(launch_seconds) / peaks[fastest],
            "attention": attention.per_second(launch_seconds) / peaks[fastest],
            "pointwise": 1.0,
            "memory": 1.0,
        },
        launch_seconds=launch_seconds,
    )


def _products(most_bytes: int, *, device: torch.device) -> dict[torch.dtype, Timing]:
    """The timing of matrix products by dtype."""
    products = {}
    for dtype in DTYPES:
        sizes = 512, isqrt(most_bytes // (3 * dtype.itemsize))
        try:
            products[dtype] = _best(_matmul, sizes=sizes, device=device, dtype=dtype)
        except (NotImplementedError, TypeError):  # how PyTorch's backends say that they lack a dtype
            if dtype is torch.float32:
                raise
    return products


def _overlap_fraction(edge: int, copied_bytes: int, *, device: torch.device, dtype: torch.dtype) -> float:
    """How long a pinned copy takes alone, as a share of how long it takes beside four matrix products; at most 1."""
    multiply, _ = _matmul(edge, device=device, dtype=dtype)
    copy, _ = _pinned_copy(copied_bytes, device=device, dtype=torch.uint8)
    main, side = torch.accelerator.current_stream(device), torch.Stream(device=device)
    start, end = (torch.Event(device=device, enable_timing=True) for _ in range(2))

    def copy_seconds(num_products: int) -> float:
        side.wait_stream(main)
        for _ in range(num_products):
            multiply()
        start.record(side)
        with side:
            copy()
        end.record(side)
        torch.accelerator.synchronize(device)
        return start.elapsed_time(end) / 1e3

    copy_seconds(0)  # the side stream's first use
    alone, beside = (min(copy_seconds(num_products) for _ in range(3)) for num_products in (0, 4))
    return min(1.0, alone / beside)


def _give_back(device: torch.device) -> None:
    torch.accelerator.synchronize(device)
    torch.accelerator.empty_cache()
    if device.type == "cuda":  # a backend outside PyTorch may lack this cache, and asking would crash
        torch._C._host_emptyCache()  # `torch.accelerator.empty_host_cache` is younger than PyTorch 2.11


# ---------------------------------------------------------------------------------------------------
# Time


def _best(make: Make, *, sizes: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Timing:
    """Double the first of `sizes`, up to the last, until a call takes long enough; repeat that and keep the best."""
    size, largest = sizes
    while True:
        call, amount = make(size, device=device, dtype=dtype)
        call()  # libraries load, and choose their kernels, when they first see a size
        seconds, host_seconds = _elapsed(call, num_calls=1, device=device)
        if seconds >= ENOUGH_SECONDS or host_seconds >= PATIENCE_SECONDS or 2 * size > largest:
            break
        del call  # its tensors go before the next are made
        size *= 2
    num_calls = max(1, int(min(ENOUGH_SECONDS / seconds, PATIENCE_SECONDS / host_seconds)))
    spent_seconds = host_seconds
    while spent_seconds < PATIENCE_SECONDS:
        batch_seconds, host_seconds = _elapsed(call, num_calls=num_calls, device=device)
        seconds = min(seconds, batch_seconds / num_calls)
        spent_seconds += host_seconds
    logger.debug("%s of size %d, %s on %s: %.3g s", make.__name__.strip("_"), size, dtype, device, seconds)
    return Timing(size=size, amount=amount, seconds=seconds)


def _elapsed(call: Callable[[], object], *, num_calls: int, device: torch.device) -> tuple[float, float]:
    """Seconds of the device and of the host for calls in a row."""
    start, end = (torch.Event(device=device, enable_timing=True) for _ in range(2))
    began = time.perf_counter()
    start.record()
    for _ in range(num_calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3, time.perf_counter() - began


# ---------------------------------------------------------------------------------------------------
# What is timed


def _tiny_kernel(size: int, *, device: torch.device, dtype: torch.dtype) -> Trial:
    tiny = torch.zeros(size, device=device, dtype=dtype)
    return lambda: tiny.add_(1), 0


def _pinned_copy(size: int, *, device: torch.device, dtype: torch.dtype) -> Trial:
    host = _locked_if_possible(torch.ones(size, device="cpu", dtype=dtype))
    there = torch.empty(size, device=device, dtype=dtype)
    return lambda: there.copy_(host, non_blocking=True), host.nbytes


def _locked_if_possible(host: torch.Tensor) -> torch.Tensor:
    """The same in page-locked memory; where the system refuses that, weights will lie in ordinary memory too."""
    try:
        return host.pin_memory()
    except RuntimeError as error:
        logger.debug("page-locked memory is refused, so copies are measured from ordinary memory: %s", error)
        return host


def _pageable_copy(size: int, *, device: torch.device, dtype: torch.dtype) -> Trial:
    host = torch.ones(size, device="cpu", dtype=dtype)
    there = torch.empty(size, device=device, dtype=dtype)
    return lambda: there.copy_(host), host.nbytes


def _readback(size: int, *, device: torch.device, dtype: torch.dtype) -> Trial:
    """Copies into fresh memory each time, whose pages are mapped as they are filled, as in `module.to("cpu")`."""
    there, kept = torch.zeros(size, device=device, dtype=dtype), list[torch.Tensor]()
    return lambda: kept.append(there.cpu()), there.nbytes


def _matmul(edge: int, *, device: torch.device, dtype: torch.dtype) -> Trial:
    left, right = (_random(edge, edge, device=device, dtype=dtype) for _ in range(2))
    return lambda: left @ right, 2 * edge**3


def _convolution(num_images: int, *, device: torch.device, dtype: torch.dtype) -> Trial:
    """3 x 3, 256 to 256 channels, images of 32 x 32: 1 MiB each at 16 bits, with its result."""
    images = _random(num_images, 256, 32, 32, device=device, dtype=dtype)
    weight = _random(256, 256, 3, 3, device=device, dtype=dtype)
    return lambda: functional.conv2d(images, weight, padding=1), 2 * images.numel() * 256 * 9


def _attention(num_tokens: int, *, device: torch.device, dtype: torch.dtype) -> Trial:
    """8 heads of 64 channels: 4 KiB per token at 16 bits, with its result."""
    query, key, value = (_random(1, 8, num_tokens, 64, device=device, dtype=dtype) for _ in range(3))
    # two matrix products per head, as `vramtune.profiler.roofline.attention_flops` counts them
    flops = 2 * 2 * query.numel() * num_tokens
    return lambda: functional.scaled_dot_product_attention(query, key, value), flops


def _addition(size: int, *, device: torch.device, dtype: torch.dtype) -> Trial:
    left, right = (torch.ones(size, device=device, dtype=dtype) for _ in range(2))
    return lambda: left + right, 3 * left.nbytes


def _random(*shape: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Random, because a GPU computes constants with less power, so faster; the caller's generators stay untouched."""
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(shape, device=device, dtype=dtype, generator=generator)
