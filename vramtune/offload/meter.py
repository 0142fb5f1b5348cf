"""What a tuned pipeline's last call took, by the device's own counters and events.

That costs two events for each wait and one for each stage. The host waits only when someone asks for the measurement.
"""

import threading
from dataclasses import dataclass, field

import torch

from vramtune.schema import MeasuredStage, Measurement

MOST_WAITS = 512
"""Number of pairs of events kept before those that are done are added up."""

Waits = list[tuple[torch.Event, torch.Event]]


@dataclass(slots=True, eq=False)
class StageReading:
    """What the meter has read of one stage."""

    name: str
    start: torch.Event
    end: torch.Event | None = None
    peak_bytes: int = 0
    moved_bytes: int = 0
    waited_seconds: float = 0.0
    waits: Waits = field(default_factory=list)

    def add_up(self) -> None:
        """Turn the waits that are done into seconds."""
        while self.waits and self.waits[0][1].query():
            before, after = self.waits.pop(0)
            self.waited_seconds += before.elapsed_time(after) / 1000


class Meter:
    """Measures one call after the other; remembers the last that was finished."""

    def __init__(self, device: torch.device, context_bytes: int | None) -> None:
        self._device, self.context_bytes = device, context_bytes
        self.others_bytes = 0
        """What the allocator holds for others of this process, which does not count."""
        self._readings: list[StageReading] = []
        self._last: tuple[StageReading, ...] = ()
        self._num_out_of_memory = self._last_num_out_of_memory = 0
        self._lock = threading.Lock()
        """Of the last call: a status page asks for it while another call runs, and must not wait for that."""

    def begin_stage(self, name: str) -> None:
        """Begin with a stage, and end the one before it, if there was one."""
        now = self._now()
        self._end_stage(now)
        self._readings.append(StageReading(name, now))

    def copied(self, num_bytes: int) -> None:
        """Count bytes that are on their way to the device."""
        if self._readings:
            self._readings[-1].moved_bytes += num_bytes

    def waited(self, before: torch.Event, after: torch.Event) -> None:
        """Count the time between these two, in which the compute stream stood still."""
        if not self._readings:
            return
        reading = self._readings[-1]
        reading.waits.append((before, after))
        if len(reading.waits) > MOST_WAITS:
            reading.add_up()

    def ran_out_of_memory(self) -> None:
        """Count a call, or a component's, that ran out of memory."""
        self._num_out_of_memory += 1

    def finish(self) -> None:
        """End the call: it becomes the last one."""
        if self._readings:
            self._end_stage(self._now())
            with self._lock:
                self._last, self._last_num_out_of_memory = tuple(self._readings), self._num_out_of_memory
        self.discard()

    def restart(self) -> None:
        """Begin again with a call that ran out of memory."""
        self._readings = []

    def discard(self) -> None:
        """Forget the call that failed or never ended: the one before it stays the last."""
        self._readings, self._num_out_of_memory = [], 0

    @property
    def peak_bytes(self) -> dict[str, int]:
        """Peaks of the last call's stages by name; none of a call that ran out of memory, whose attempts took as much."""
        if self._last_num_out_of_memory:
            return {}
        return {name: max(r.peak_bytes for r in self._last if r.name == name) for name in {r.name for r in self._last}}

    @property
    def is_done(self) -> bool:
        """Whether the device has done with the last finished call."""
        return bool(self._last) and self._last[-1].end is not None and self._last[-1].end.query()

    def measurement(self) -> Measurement | None:
        """The last finished call, or None before there is one; waits for its last operation."""
        with self._lock:
            if not self._last:
                return None
            end = self._last[-1].end
            assert end is not None
            end.synchronize()
            stages, num_out_of_memory = tuple(map(_measured, self._last)), self._last_num_out_of_memory
        return Measurement(
            device_name=_device_name(self._device),
            peak_bytes=max(stage.peak_bytes for stage in stages) + (self.context_bytes or 0),
            context_bytes=self.context_bytes,
            seconds=sum(stage.seconds for stage in stages),
            moved_bytes=sum(stage.moved_bytes for stage in stages),
            num_out_of_memory=num_out_of_memory,
            stages=stages,
        )

    def _now(self) -> torch.Event:
        event = torch.Event(device=self._device, enable_timing=True)
        event.record(torch.accelerator.current_stream(self._device))
        return event

    def _end_stage(self, now: torch.Event) -> None:
        if self._readings:
            self._readings[-1].end = now
            reserved_bytes = torch.accelerator.max_memory_reserved(self._device)
            self._readings[-1].peak_bytes = max(reserved_bytes - self.others_bytes, 0)
        torch.accelerator.reset_peak_memory_stats(self._device)


def _measured(reading: StageReading) -> MeasuredStage:
    assert reading.end is not None
    reading.add_up()
    return MeasuredStage(
        name=reading.name,
        seconds=reading.start.elapsed_time(reading.end) / 1000,
        exposed_copy_seconds=reading.waited_seconds,
        moved_bytes=reading.moved_bytes,
        peak_bytes=reading.peak_bytes,
    )


def _device_name(device: torch.device) -> str:
    module = torch.get_device_module(device)
    return str(module.get_device_name(device)) if hasattr(module, "get_device_name") else str(device)
