"""The host's other threads in virtual time: what stages weights and what reads files have clocks of their own.

Their work is done as soon as it is asked for, by the thread that asks, with the simulated host's clock turned to where the
other thread is. That is the same in virtual time, because a job waits for nothing that is asked for after it.
"""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from tests.simgpu import load
from vramtune.layout import round_up
from vramtune.offload import staging


class VirtualFuture(Future[Any]):
    """What a job gave, and when."""

    def __init__(self, time: int) -> None:
        super().__init__()
        self._time = time

    def result(self, timeout: float | None = None) -> Any:
        sim = load()
        sim.set_host_clock(max(sim.host_clock(), self._time))
        return super().result(timeout)


class VirtualThread(Executor):
    """A thread that does one job after the other."""

    def __init__(self, **_: object) -> None:
        self._time = 0

    def submit(self, job: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        sim = load()
        asked = sim.host_clock()
        sim.set_host_clock(max(asked, self._time))
        try:
            given = job(*args, **kwargs)
        finally:
            self._time = sim.host_clock()
            sim.set_host_clock(asked)
        future = VirtualFuture(self._time)
        future.set_result(given)
        return future


def stage_in_virtual_time(
    monkeypatch: pytest.MonkeyPatch, bytes_per_second: float, *, disk_bytes_per_second: float = float("inf")
) -> None:
    """Let the threads be virtual ones, of which one copies so fast from ordinary into pinned memory, and one reads what lies in
    files from a virtual disk, each time: each tensor with the room that it takes in a copy, as plans count."""
    fill, read = staging.fill, staging.read

    def timed_fill(flat: Any, part: staging.Part) -> None:
        fill(flat, part)
        _pass(part.num_bytes / bytes_per_second)

    def timed_read(part: staging.Part) -> None:
        read(part)
        _pass(sum(round_up(source.nbytes) for source in part.in_files) / disk_bytes_per_second)

    monkeypatch.setattr(staging, "ThreadPoolExecutor", VirtualThread)
    monkeypatch.setattr(staging, "fill", timed_fill)
    monkeypatch.setattr(staging, "read", timed_read)


def _pass(seconds: float) -> None:
    sim = load()
    sim.set_host_clock(sim.host_clock() + round(1e12 * seconds))
