"""A call as a Chrome trace: one JSON file that https://ui.perfetto.dev and chrome://tracing open.

The format is Google's Trace Event Format: complete events ("X") in microseconds, counters ("C"), names ("M"). The
process is called predicted, so that no viewer takes it for a measurement.
"""

import itertools
from collections.abc import Iterator

import msgspec

from vramtune.reports.cards import plan_title
from vramtune.schema import Engine, MemoryLevel, Timeline

Event = dict[str, object]

PROCESS = 1
THREADS: dict[Engine, int] = {"compute": 1, "copy": 2}


def timeline_trace(timeline: Timeline) -> bytes:
    """A predicted call: stages and groups as they compute, copies beside them, memory by owner.

    What is known of the whole call stands under `otherData`, which viewers show as the trace's metadata.
    """
    plan = timeline.plan
    events = (
        _name("process_name", f"{plan_title(plan)} (predicted)", thread=0),
        *(_name("thread_name", engine, thread=thread) for engine, thread in THREADS.items()),
        *_stages(timeline),
        *_groups(timeline),
        *_owners(timeline),
    )
    facts = {"seconds": plan.estimate.seconds, "bound_seconds": plan.estimate.bound_seconds}
    metadata = {"source": "predicted", **facts}
    return msgspec.json.encode({"displayTimeUnit": "ms", "otherData": metadata, "traceEvents": events})


def _stages(timeline: Timeline) -> Iterator[Event]:
    """The stages, on the compute thread, where viewers nest the groups inside them."""
    for stage, run in itertools.groupby(timeline.memory, key=lambda level: level.stage):
        levels = list(run)
        planned = timeline.plan.stages[stage]
        yield _span(
            "compute",
            planned.name,
            (levels[0].start_seconds, levels[-1].end_seconds),
            num_iterations=planned.num_iterations,
        )


def _groups(timeline: Timeline) -> Iterator[Event]:
    for span in timeline.spans:
        yield _span(
            span.engine,
            f"{span.component}: {span.group}",
            (span.start_seconds, span.end_seconds),
            component=span.component,
            group=span.group,
            iteration=span.iteration,
            is_kept=span.is_kept,
        )


def _owners(timeline: Timeline) -> Iterator[Event]:
    """Memory by owner, and in all: Perfetto draws a track for each owner and does not stack them."""
    names = dict.fromkeys(name for level in timeline.memory for name in level.component_bytes)
    for level in timeline.memory:
        held = {name: level.component_bytes.get(name, 0) for name in names}
        yield _counter("GPU memory of weights (bytes)", level.start_seconds, held)
        yield _counter("GPU memory of the rest (bytes)", level.start_seconds, _rest(level))
        yield _counter("GPU memory (bytes)", level.start_seconds, {"all": level.held_bytes})


def _rest(level: MemoryLevel) -> dict[str, int]:
    return {
        "slots": level.slot_bytes,
        "activations": level.activation_bytes,
        "cached": level.cached_bytes,
        "pipeline": level.pipeline_bytes,
        "workspaces": level.workspace_bytes,
        "context": level.context_bytes,
    }


def _span(engine: Engine, name: str, ends: tuple[float, float], **args: object) -> Event:
    """A complete event; both ends are rounded to nanoseconds, so that what lies inside another stays inside."""
    start, end = (round(seconds * 1e6, 3) for seconds in ends)
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
