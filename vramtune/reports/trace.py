"""A call as a Chrome trace: one JSON file that https://ui.perfetto.dev and chrome://tracing open.

The format is Google's Trace Event Format: complete events ("X") in microseconds, counters ("C"), names ("M"). The
process is called predicted or measured, so that neither is taken for the other in the viewer.
"""

import itertools
from collections.abc import Iterator

import msgspec

from vramtune.schema import Engine, Measurement, Plan, Source, Timeline
from vramtune.units import format_bytes

Event = dict[str, object]

PROCESS = 1
THREADS: dict[Engine, int] = {"compute": 1, "copy": 2}


def timeline_trace(timeline: Timeline, *, plan: Plan) -> bytes:
    """A predicted call: stages and groups as they compute, copies beside them, memory by owner."""
    title = f"{plan.pipeline_class} in {format_bytes(plan.budget_bytes)} of {plan.device_name}"
    events = [*_stages(timeline, plan), *_groups(timeline), *_owners(timeline)]
    facts = {"seconds": plan.estimate.seconds, "bound_seconds": plan.estimate.bound_seconds}
    return _json("predicted", title, events, facts=facts)


def measurement_trace(measurement: Measurement) -> bytes:
    """A measured call: its stages one after the other, what they waited and copied, how high memory rose."""
    events = list(_measured_stages(measurement))
    return _json("measured", measurement.device_name, events, facts={"seconds": measurement.seconds})


def _json(source: Source, title: str, events: list[Event], *, facts: dict[str, float]) -> bytes:
    """The whole file; what is known of the call stands under `otherData`, which viewers show as the trace's metadata."""
    names = [
        _name("process_name", f"{title} ({source})", thread=0),
        *(_name("thread_name", engine, thread=thread) for engine, thread in THREADS.items()),
    ]
    return msgspec.json.encode(
        {
            "displayTimeUnit": "ms",
            "otherData": {"source": source, **facts},
            "traceEvents": [*names, *events],
        }
    )


def _stages(timeline: Timeline, plan: Plan) -> Iterator[Event]:
    """The stages, on the compute thread, where viewers nest the groups inside them."""
    for stage, run in itertools.groupby(timeline.memory, key=lambda level: level.stage):
        levels = list(run)
        facts = plan.stages[stage]
        yield _span(
            "compute",
            facts.name,
            start_seconds=levels[0].start_seconds,
            end_seconds=levels[-1].end_seconds,
            args={"num_iterations": facts.num_iterations},
        )


def _groups(timeline: Timeline) -> Iterator[Event]:
    for span in timeline.spans:
        yield _span(
            span.engine,
            f"{span.component}: {span.group}",
            start_seconds=span.start_seconds,
            end_seconds=span.end_seconds,
            args={"component": span.component, "group": span.group},
        )


def _owners(timeline: Timeline) -> Iterator[Event]:
    """Memory by owner, and in all: Perfetto draws a track for each owner and does not stack them."""
    names = dict.fromkeys(owner for level in timeline.memory for owner in level.owners)
    for level in timeline.memory:
        held = {owner: level.owners.get(owner, 0) for owner in names}
        yield _counter("GPU memory by owner (bytes)", level.start_seconds, held)
        yield _counter("GPU memory (bytes)", level.start_seconds, {"all": sum(held.values())})


def _measured_stages(measurement: Measurement) -> Iterator[Event]:
    start = 0.0
    for stage in measurement.stages:
        end = start + stage.seconds
        args: Event = {"exposed_copy_seconds": stage.exposed_copy_seconds, "moved_bytes": stage.moved_bytes}
        yield _span("compute", stage.name, start_seconds=start, end_seconds=end, args=args)
        yield _counter("peak reserved by PyTorch (bytes)", start, {"stage": stage.peak_bytes})
        start = end


def _span(engine: Engine, name: str, *, start_seconds: float, end_seconds: float, args: Event) -> Event:
    """A complete event; both ends are rounded to nanoseconds, so that what lies inside another stays inside."""
    start, end = round(start_seconds * 1e6, 3), round(end_seconds * 1e6, 3)
    return {
        "ph": "X",
        "name": name,
        "pid": PROCESS,
        "tid": THREADS[engine],
        "ts": start,
        "dur": round(end - start, 3),
        "args": args,
    }


def _counter(name: str, seconds: float, values: dict[str, int]) -> Event:
    return {"ph": "C", "name": name, "pid": PROCESS, "ts": round(seconds * 1e6, 3), "args": values}


def _name(kind: str, name: str, *, thread: int) -> Event:
    return {"ph": "M", "name": kind, "pid": PROCESS, "tid": thread, "args": {"name": name}}
