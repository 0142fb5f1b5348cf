"""How long a call takes, by the accelerator's own events and by the host's clock."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vramtune.machine.trials import Make

ENOUGH_SECONDS = 1e-3
"""Device time of a call from which launches and the resolution of the clock no longer matter."""
PATIENCE_SECONDS = 5e-3
"""Host time for which a call is repeated; one that takes as long is not made larger."""
NUM_QUEUED = 50
"""Calls issued while the GPU is busy; the host needs some 20 microseconds for one."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The best time of one call, at the size to which it was made to grow."""

    size: int
    amount: float
    seconds: float

    def per_second(self, fixed_seconds: float) -> float:
        """The rate once a fixed cost is taken off; the cost counts as at most nine tenths of the time."""
        return self.amount / max(self.seconds - fixed_seconds, self.seconds / 10)


def best_timing(make: Make, *, sizes: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Timing:
    """Double the first of `sizes`, up to the last, until a call takes long enough; repeat that and keep the best."""
    size, largest = sizes
    while True:
        call, amount = make(size, device=device, dtype=dtype)
        call()  # libraries load, and choose their kernels, when they first see a size
        seconds, host_seconds = elapsed(call, num_calls=1, device=device)
        if seconds >= ENOUGH_SECONDS or host_seconds >= PATIENCE_SECONDS or 2 * size > largest:
            break
        del call  # its tensors go before the next are made
        size *= 2
    num_calls = max(1, int(min(ENOUGH_SECONDS / seconds, PATIENCE_SECONDS / host_seconds)))
    spent_seconds = host_seconds
    while spent_seconds < PATIENCE_SECONDS:
        batch_seconds, host_seconds = elapsed(call, num_calls=num_calls, device=device)
        seconds = min(seconds, batch_seconds / num_calls)
        spent_seconds += host_seconds
    logger.debug("%s of size %d, %s on %s: %.3g s", make, size, dtype, device, seconds)
    return Timing(size=size, amount=amount, seconds=seconds)


def elapsed(call: Callable[[], object], *, num_calls: int, device: torch.device) -> tuple[float, float]:
    """Seconds of the device and of the host for calls in a row."""
    start, end = (torch.Event(device=device, enable_timing=True) for _ in range(2))
    began = time.perf_counter()
    start.record()
    for _ in range(num_calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3, time.perf_counter() - began


def queued_seconds(call: Callable[[], object], busy: Callable[[], object], *, device: torch.device) -> float:
    """The GPU's time of a call that waits in its queue when its turn comes, so that the host's does not show."""
    start, end = (torch.Event(device=device, enable_timing=True) for _ in range(2))
    call()
    best_seconds = float("inf")
    for _ in range(2):
        busy()
        start.record()
        for _ in range(NUM_QUEUED):
            call()
        end.record()
        end.synchronize()
        best_seconds = min(best_seconds, start.elapsed_time(end) / 1e3 / NUM_QUEUED)
    return best_seconds
