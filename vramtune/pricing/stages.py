"""From the sequence of calls to stages: what each call costs, loops, equal calls counted."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import ceil
from typing import NamedTuple

from vramtune.pricing.reserved import (
    first_of_stage,
    least_in_arenas,
    peak_bytes,
    peak_in_arenas,
    small_tensors,
    under_limits,
)
from vramtune.pricing.roofline import host_seconds, work_seconds
from vramtune.schema import (
    CERTAIN,
    LEAST_REPEATS,
    Activity,
    Device,
    Loop,
    Segment,
    Spread,
    Stage,
    Trace,
    TracedCall,
    TracedRun,
    call_name,
    find_loops,
)


class Cost(NamedTuple):
    """Seconds of some work, one after the other."""

    gpu_seconds: float
    host_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The pipeline's own memory and work around one call."""

    held_bytes: int
    """Live bytes while the component runs."""
    peak_bytes: int
    """Highest live bytes between this call and the next one."""
    seconds: float
    """Seconds of work between this call and the next one."""


def build_stages(run: TracedRun, calls: Sequence[int], estimator: "Estimator") -> tuple[Stage, ...]:
    """The stages of a call of the pipeline; `calls` says, turn by turn, how the component was executed."""
    intervals = list(_intervals(run, estimator))
    together: list[list[Stage]] = []
    for loop in find_loops(calls):
        stage = _stage(loop, calls, intervals, estimator)
        if together and _can_merge(_merged(together[-1]), stage):
            together[-1].append(stage)
        else:
            together.append([stage])
    return _uniquely_named(map(_merged, together))


class Estimator:
    """Estimates what a trace's calls cost on a device; each different one is computed once."""

    def __init__(self, trace: Trace, device: Device) -> None:
        self._trace, self._device = trace, device
        self._gpu_seconds = [work_seconds(work, device) for work in trace.work]
        self._host_seconds = [host_seconds(work, device) for work in trace.work]
        self._activities: dict[int, Activity] = {}

    def cost(self, work: Iterable[int]) -> Cost:
        """Of work by its indices, added up in the order of execution."""
        on_gpu, on_host = self._gpu_seconds, self._host_seconds
        gpu = host = 0.0
        for index in work:
            gpu += on_gpu[index]
            host += on_host[index]
        return Cost(gpu, host)

    def activity(self, call: int) -> Activity:
        """One call, cut into segments."""
        if call not in self._activities:
            self._activities[call] = self._activity(self._trace.calls[call])
        return self._activities[call]

    def _activity(self, call: TracedCall) -> Activity:
        costs = [self.cost(work) for s in call.segments for work in (s.layer_work, s.after_work)]
        gpu_seconds, host_seconds = sum(cost.gpu_seconds for cost in costs), sum(cost.host_seconds for cost in costs)
        seconds = max(gpu_seconds, host_seconds)
        return Activity(
            component=call.component,
            method=call.method,
            num_calls=1,
            segments=tuple(_segments(call, costs, waits_for_host=host_seconds > gpu_seconds)),
            activation_bytes=peak_bytes(call, self._device.workspace_bytes),
            small_tensors=small_tensors(call, self._device.workspace_bytes),
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

    def repeated(self, call: int) -> Activity:
        """As a call that is repeated, in which no memory is given back."""
        activity = self.activity(call)
        if self._device.kernels != "cuda":
            return activity
        traced, first = self._trace.calls[call], first_of_stage(self._trace, call)
        return replace(activity, in_arenas=peak_in_arenas(traced, self._device.workspace_bytes, first=first))

    def once(self, call: int) -> Activity:
        """As a call that is not repeated, in which memory may run short before PyTorch has to give up.

        It gives cached memory back, and cuDNN falls back to kernels that need a copy of the images alone: in a loop both
        would cost time at every iteration. Four VAEs decoded in this much on an H200, and not in 9 to 13% less
        (`benchmarks/results/least_memory_nvidia_h200_*.json`); in arenas none has yet. Another accelerator than CUDA's is not
        supposed to.
        """
        activity = self.activity(call)
        if self._device.kernels != "cuda":
            return activity
        taken_bytes = self._device.workspace_bytes
        least_bytes, cached_bytes = under_limits(self._trace.calls[call], taken_bytes)
        return replace(
            activity,
            activation_bytes=least_bytes,
            cached_bytes=cached_bytes,
            in_arenas=least_in_arenas(self._trace.calls[call], taken_bytes),
        )


def _segments(call: TracedCall, costs: Sequence[Cost], *, waits_for_host: bool) -> Iterator[Segment]:
    """By layer. A call lasts as long as the slower of GPU and host, whose queue evens out what lies between."""
    seconds = iter([cost.host_seconds if waits_for_host else cost.gpu_seconds for cost in costs])
    for traced in call.segments:
        yield Segment(
            layer=traced.layer,
            layer_seconds=next(seconds),
            layer_activation_bytes=traced.layer_activation_bytes,
            after_seconds=next(seconds),
            after_activation_bytes=traced.after_activation_bytes,
        )


def _intervals(run: TracedRun, estimator: Estimator) -> Iterator[Interval]:
    """The pipeline's own memory and work around each call; what precedes the first one goes to the first."""
    lead_seconds = max(estimator.cost(run.lead_work))
    for turn in run.turns:
        yield Interval(
            held_bytes=turn.held_bytes,
            peak_bytes=turn.peak_bytes,
            seconds=max(estimator.cost(turn.work)) + lead_seconds,
        )
        lead_seconds = 0.0


def _stage(loop: Loop, calls: Sequence[int], intervals: Sequence[Interval], estimator: Estimator) -> Stage:
    cost_of = estimator.once if loop.num_iterations == 1 else estimator.repeated
    iteration = calls[loop.start : loop.start + loop.period]
    active = tuple(replace(cost_of(call), num_calls=len(list(same))) for call, same in groupby(iteration))
    around = intervals[loop.start : loop.stop]
    held_bytes = max(interval.held_bytes for interval in around)
    stage = Stage(
        name=" + ".join(dict.fromkeys(call_name(a.component, a.method) for a in active)),
        num_iterations=loop.num_iterations,
        activities=active,
        pipeline_bytes=held_bytes,
        pipeline_seconds=sum(interval.seconds for interval in around) / loop.num_iterations,
    )
    if loop.num_iterations == 1 and sum(activity.num_calls for activity in active) > 1:
        stage = _without_arenas(stage)
    # The pipeline's own peak between calls (a decoded video being converted) must fit as well.
    between_bytes = max(interval.peak_bytes for interval in around) - stage.planned_activation_bytes
    return replace(stage, pipeline_bytes=max(held_bytes, between_bytes))


def _can_merge(first: Stage, second: Stage) -> bool:
    same = {(a.component, a.method) for a in first.activities} == {(a.component, a.method) for a in second.activities}
    return same and min(first.num_iterations, second.num_iterations) < LEAST_REPEATS


def _merged(parts: Sequence[Stage]) -> Stage:
    """One stage of all the parts' calls: the first call of a loop of two may be another one, and leave one over at the end."""
    if len(parts) == 1:
        return parts[0]
    costlier = max(parts, key=lambda stage: (stage.activation_bytes, stage.seconds))
    num_calls = sum(stage.num_iterations * _calls_of_iteration(stage) for stage in parts)
    num_iterations = ceil(num_calls / _calls_of_iteration(costlier))
    if costlier.num_iterations == 1:
        costlier = _without_arenas(costlier)
    return replace(
        costlier,
        num_iterations=num_iterations,
        pipeline_bytes=max(stage.pipeline_bytes for stage in parts),
        pipeline_seconds=sum(stage.num_iterations * stage.pipeline_seconds for stage in parts) / num_iterations,
    )


def _calls_of_iteration(stage: Stage) -> int:
    return sum(activity.num_calls for activity in stage.activities)


def _without_arenas(stage: Stage) -> Stage:
    """Of calls for which the arenas of a single one are none: what the first returns would lie there during the second."""
    return replace(stage, activities=tuple(replace(activity, in_arenas=None) for activity in stage.activities))


def _uniquely_named(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    seen: dict[str, int] = {}
    named = []
    for stage in stages:
        seen[stage.name] = seen.get(stage.name, 0) + 1
        suffix = f" ({seen[stage.name]})" if seen[stage.name] > 1 else ""
        named.append(replace(stage, name=stage.name + suffix))
    return tuple(named)
