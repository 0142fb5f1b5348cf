"""From the sequence of calls to stages: find loops, count equal calls, attach memory and seconds."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from vramtune.layout import workspace_block_bytes
from vramtune.profiler.allocator import least_limit_bytes, reserved_peak_bytes
from vramtune.profiler.record import Recording
from vramtune.profiler.roofline import Work, host_seconds, work_seconds
from vramtune.profiler.trace import Trace
from vramtune.profiler.tracker import Allocation, End, Entry
from vramtune.schema import CERTAIN, Activity, Component, Device, Segment, Spread, Stage, call_name

LONGEST_PERIOD = 8
"""Most calls of one iteration: guidance makes up to three of a denoiser, networks beside it (ControlNet) one each."""
LEAST_REPEATS = 3
"""Fewest iterations of a loop. Two alike are not one: SD3's three encoders run in turn for each of two prompts, and a
plan may keep a different one for each call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """The same `period` calls, `num_iterations` times over, beginning with call number `start`."""

    start: int
    period: int
    num_iterations: int

    @property
    def stop(self) -> int:
        """Number of the first call after it."""
        return self.start + self.period * self.num_iterations


@dataclass(slots=True, kw_only=True)
class Stretch:
    """Seconds and peak of a part of a tape, added up while it is read."""

    gpu_seconds: float = 0.0
    host_seconds: float = 0.0
    peak_bytes: int = 0

    def seconds(self, *, waits_for_host: bool) -> float:
        """The GPU's, or the host's where it is late with every launch."""
        return self.host_seconds if waits_for_host else self.gpu_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The pipeline's own memory and work around one call."""

    held_bytes: int
    """Live bytes while the component runs."""
    peak_bytes: int
    """Highest live bytes between this call and the next one."""
    seconds: float
    """Seconds of work between this call and the next one."""


def build_stages(
    recording: Recording, traces: Sequence[Trace], components: Mapping[str, Component], estimator: "Estimator"
) -> tuple[Stage, ...]:
    """The stages of a recorded call; `traces` holds, call by call, how the component was executed."""
    intervals = pipeline_intervals(recording, estimator)
    activities = {trace: estimator.activity(trace, components[trace.component]) for trace in dict.fromkeys(traces)}
    stages: list[Stage] = []
    for loop in find_loops(traces):
        stage = _stage(loop, traces, activities, intervals, estimator)
        if stages and _can_merge(stages[-1], stage):
            stages[-1] = _merged(stages[-1], stage)
        else:
            stages.append(stage)
    return _uniquely_named(stages)


def find_loops(tokens: Sequence[Hashable]) -> list[Loop]:
    """Cut a sequence into loops: at each place the period that covers most, the shortest of equals.

    A loop has at least three iterations; a call in none of these is a loop of one iteration of its own.
    """
    loops: list[Loop] = []
    start = 0
    while start < len(tokens):
        best = max((_loop_at(tokens, start, period) for period in range(1, LONGEST_PERIOD + 1)), key=_coverage)
        loops.append(best if _coverage(best) else Loop(start=start, period=1, num_iterations=1))
        start = loops[-1].stop
    return loops


def _loop_at(tokens: Sequence[Hashable], start: int, period: int) -> Loop:
    stop = start + period
    while stop < len(tokens) and tokens[stop] == tokens[stop - period]:
        stop += 1
    return Loop(start=start, period=period, num_iterations=(stop - start) // period)


def _coverage(loop: Loop) -> int:
    return loop.period * loop.num_iterations if loop.num_iterations >= LEAST_REPEATS else 0


# ---------------------------------------------------------------------------------------------------
# One call


class Estimator:
    """Estimates seconds on a device; each different piece of work is computed once."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._seconds: dict[Work, tuple[float, float]] = {}
        self._activities: dict[Trace, Activity] = {}
        self._least_bytes: dict[Trace, int] = {}

    def add(self, stretch: Stretch, work: Work) -> None:
        """Add an operation's seconds, on the GPU and on the host."""
        known = self._seconds.get(work)
        if known is None:
            known = self._seconds[work] = work_seconds(work, self._device), host_seconds(work, self._device)
        stretch.gpu_seconds += known[0]
        stretch.host_seconds += known[1]

    def activity(self, trace: Trace, component: Component) -> Activity:
        """One call, cut into segments; each different one is computed once."""
        if trace not in self._activities:
            self._activities[trace] = self._activity(trace, component)
        return self._activities[trace]

    def _activity(self, trace: Trace, component: Component) -> Activity:
        stretches = self._stretches(trace.tape, component)
        parts = [part for _, own, after in stretches for part in (own, after)]
        gpu_seconds, host_seconds = sum(part.gpu_seconds for part in parts), sum(part.host_seconds for part in parts)
        seconds = max(gpu_seconds, host_seconds)
        return Activity(
            component=trace.component,
            method=trace.method,
            num_calls=1,
            segments=tuple(_segments(stretches, waits_for_host=host_seconds > gpu_seconds)),
            activation_bytes=self._beside_workspace(reserved_peak_bytes, self._allocations(trace.tape)),
            gpu_fraction=gpu_seconds / seconds if seconds else 1.0,
            host_fraction=host_seconds / seconds if seconds else 0.0,
            spread=self._spread(gpu_seconds, host_seconds),
        )

    def _spread(self, gpu_seconds: float, host_seconds: float) -> Spread:
        """Of the slower of both."""
        expected, gpu, host = max(gpu_seconds, host_seconds), self._device.spreads.gpu, self._device.spreads.host
        if not expected:
            return CERTAIN
        return Spread(
            low=max(gpu_seconds * gpu.low, host_seconds * host.low) / expected,
            high=max(gpu_seconds * gpu.high, host_seconds * host.high) / expected,
        )

    def once(self, activity: Activity, trace: Trace) -> Activity:
        """As a call that is not repeated, in which memory may run short before PyTorch has to give up.

        It gives cached memory back, and cuDNN falls back to kernels that need a copy of the images alone: in a loop both
        would cost time at every iteration. Four VAEs decoded in this much on an H200, and not in 9 to 13% less
        (`benchmarks/results/least_memory_nvidia_h200_*.json`). Another accelerator than CUDA's is not supposed to.
        """
        if self._device.kernels != "cuda":
            return activity
        if trace not in self._least_bytes:
            allocations = self._allocations(trace.tape, is_short=True)
            self._least_bytes[trace] = self._beside_workspace(least_limit_bytes, allocations)
        return replace(activity, activation_bytes=self._least_bytes[trace])

    def _beside_workspace(
        self, reserved_bytes: Callable[[Sequence[Allocation]], int], allocations: Iterable[Allocation]
    ) -> int:
        """What is reserved beyond cuBLAS's workspace, in whose segment small activations find room."""
        taken_bytes = self._device.workspace_bytes
        workspace = [Allocation(-1, workspace_block_bytes(taken_bytes))] if taken_bytes else []
        return reserved_bytes([*workspace, *allocations]) - taken_bytes

    def _allocations(self, tape: Iterable[Entry], *, is_short: bool = False) -> Iterator[Allocation]:
        return (entry for entry in self._with_workspaces(tape, is_short=is_short) if isinstance(entry, Allocation))

    def _with_workspaces(self, tape: Iterable[Entry], *, is_short: bool = False) -> Iterator[Entry]:
        """With what cuDNN's convolutions hold while they run: their images in the order that its kernels want."""
        for number, entry in enumerate(tape):
            yield entry
            if isinstance(entry, Work) and entry.layout_in_bytes and self._device.kernels == "cuda":
                num_bytes = entry.layout_in_bytes + (0 if is_short else entry.layout_out_bytes)
                yield Allocation(-number - 2, num_bytes)
                yield Allocation(-number - 2, -num_bytes)

    def _stretches(self, tape: Iterable[Entry], component: Component) -> list[tuple[int, Stretch, Stretch]]:
        """Layers, each with what happens in it and after it."""
        index = {layer.name: number for number, layer in enumerate(component.layers)}
        stretches: list[tuple[int, Stretch, Stretch]] = []
        layer: int | None = None
        own, after = Stretch(), Stretch()
        now, live = own, 0  # what comes before the first layer goes to the first
        for entry in self._with_workspaces(tape):
            if isinstance(entry, Work):
                self.add(now, entry)
            elif isinstance(entry, Allocation):
                live += entry.num_bytes
                now.peak_bytes = max(now.peak_bytes, live)
            elif isinstance(entry, End):
                if index.get(entry.layer) == layer and now is own:
                    now = after = Stretch(peak_bytes=live)
            elif (begun := index.get(entry.layer)) is not None and (begun != layer or now is after):
                if layer is not None:
                    stretches.append((layer, own, after))
                    own, after = Stretch(peak_bytes=live), Stretch()
                layer, now = begun, own
        if layer is not None:
            stretches.append((layer, own, after))
        return stretches


def _segments(stretches: Iterable[tuple[int, Stretch, Stretch]], *, waits_for_host: bool) -> Iterator[Segment]:
    """By layer. A call lasts as long as the slower of GPU and host, whose queue evens out what lies between."""
    for layer, own, after in stretches:
        yield Segment(
            layer=layer,
            layer_seconds=own.seconds(waits_for_host=waits_for_host),
            layer_activation_bytes=own.peak_bytes,
            after_seconds=after.seconds(waits_for_host=waits_for_host),
            after_activation_bytes=after.peak_bytes,
        )


# ---------------------------------------------------------------------------------------------------
# The pipeline itself


def pipeline_intervals(recording: Recording, estimator: Estimator) -> list[Interval]:
    """The pipeline's own memory and work around each call; what precedes the first one goes to the first."""
    tape = recording.pipeline_tape
    bounds = [call.tape_position for call in recording.calls] + [len(tape)]
    intervals, live = [], 0
    lead_peak, lead_seconds, live = _pipeline_work(tape[: bounds[0]], live, estimator)
    for start, stop in pairwise(bounds):
        held = live
        peak, seconds, live = _pipeline_work(tape[start:stop], live, estimator)
        intervals.append(Interval(held_bytes=held, peak_bytes=max(peak, lead_peak), seconds=seconds + lead_seconds))
        lead_peak, lead_seconds = 0, 0.0
    return intervals


def _pipeline_work(tape: Iterable[Entry], live: int, estimator: Estimator) -> tuple[int, float, int]:
    """Peak bytes, seconds, and live bytes at the end."""
    peak, own = live, Stretch()
    for entry in tape:
        if isinstance(entry, Allocation):
            live += entry.num_bytes
            peak = max(peak, live)
        elif isinstance(entry, Work):
            estimator.add(own, entry)
    return peak, max(own.gpu_seconds, own.host_seconds), live


# ---------------------------------------------------------------------------------------------------
# Stages


def _stage(
    loop: Loop,
    traces: Sequence[Trace],
    activities: Mapping[Trace, Activity],
    intervals: Sequence[Interval],
    estimator: Estimator,
) -> Stage:
    iteration = traces[loop.start : loop.start + loop.period]
    runs = [(trace, len(list(run))) for trace, run in groupby(iteration)]
    active = tuple(replace(activities[trace], num_calls=num_calls) for trace, num_calls in runs)
    if loop.num_iterations == 1:
        active = tuple(estimator.once(activity, trace) for activity, (trace, _) in zip(active, runs, strict=True))
    around = intervals[loop.start : loop.stop]
    activation_bytes = max(activity.activation_bytes for activity in active)
    held_bytes = max(interval.held_bytes for interval in around)
    # The pipeline's own peak between calls (a decoded video being converted) must fit as well.
    between_bytes = max(interval.peak_bytes for interval in around) - activation_bytes
    return Stage(
        name=" + ".join(dict.fromkeys(call_name(a.component, a.method) for a in active)),
        num_iterations=loop.num_iterations,
        activities=active,
        pipeline_bytes=max(held_bytes, between_bytes),
        pipeline_seconds=sum(interval.seconds for interval in around) / loop.num_iterations,
    )


def _can_merge(first: Stage, second: Stage) -> bool:
    same = {(a.component, a.method) for a in first.activities} == {(a.component, a.method) for a in second.activities}
    return same and min(first.num_iterations, second.num_iterations) < LEAST_REPEATS


def _merged(first: Stage, second: Stage) -> Stage:
    costlier = max(first, second, key=lambda stage: (stage.activation_bytes, stage.seconds))
    num_iterations = first.num_iterations + second.num_iterations
    pipeline_seconds = sum(stage.num_iterations * stage.pipeline_seconds for stage in (first, second))
    return replace(
        costlier,
        num_iterations=num_iterations,
        pipeline_bytes=max(first.pipeline_bytes, second.pipeline_bytes),
        pipeline_seconds=pipeline_seconds / num_iterations,
    )


def _uniquely_named(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    seen: dict[str, int] = {}
    named = []
    for stage in stages:
        seen[stage.name] = seen.get(stage.name, 0) + 1
        suffix = f" ({seen[stage.name]})" if seen[stage.name] > 1 else ""
        named.append(replace(stage, name=stage.name + suffix))
    return tuple(named)
