"""More hand-made nouns: what follows from a plan, and what could have been measured of it."""

from dataclasses import dataclass

from tests.reports import examples
from vramtune.schema import (
    Frontier,
    FrontierPoint,
    MeasuredStage,
    Measurement,
    Plan,
    Profile,
    Span,
    Timeline,
)
from vramtune.units import GIB, MIB


@dataclass(frozen=True)
class Tuned:
    """A tuned pipeline, as far as reports look at it."""

    profile: Profile
    plan: Plan
    measured: Measurement | None


def timeline(costs: Profile, made: Plan) -> Timeline:
    """That of the examples, with every visit as a span: what is not kept is copied while the group before computes."""
    spans, now = [], 0.0
    for index, (stage, estimate) in enumerate(zip(made.stages, made.estimate.stages, strict=True)):
        step = estimate.seconds / stage.num_iterations / len(stage.visits)
        for placement, group in stage.visits * stage.num_iterations:
            placed = made.placements[placement]
            if group >= placed.kept[index]:
                spans.append(
                    _span("copy", placed.component, placed.groups[group].name, now - 0.9 * step, now)
                )
            spans.append(_span("compute", placed.component, placed.groups[group].name, now, now + step))
            now += step
    return Timeline(spans=tuple(spans), memory=examples.timeline(costs, made).memory)


def _span(engine, component, group, start, end):
    return Span(
        engine=engine, component=component, group=group, start_seconds=max(start, 0.0), end_seconds=end
    )


def frontier(made: Plan) -> Frontier:
    """Three budgets, each faster than the one before."""
    seconds, bound = made.estimate.seconds, made.estimate.bound_seconds
    points = tuple(
        FrontierPoint(
            budget_bytes=int(gib * GIB),
            peak_bytes=int(gib * GIB) - 20 * MIB,
            seconds=slower * seconds,
            bound_seconds=bound,
        )
        for gib, slower in ((4.5, 1.3), (5, 1.1), (6, 1.0))
    )
    return Frontier(points=points, modes=examples.comparison(made).stock)


def measurement(made: Plan, *, context_bytes: int | None = 310 * MIB, **changes: object) -> Measurement:
    """The last call, 2% slower than predicted and 1% lower."""
    stages = tuple(
        MeasuredStage(
            name=stage.name,
            seconds=1.02 * stage.seconds,
            exposed_copy_seconds=stage.seconds - stage.compute_seconds,
            moved_bytes=stage.moved_bytes,
            peak_bytes=int(0.99 * (stage.peak_bytes - examples.DEVICE.context_bytes)),
        )
        for stage in made.estimate.stages
    )
    facts = {
        "device_name": made.device_name,
        "peak_bytes": max(stage.peak_bytes for stage in stages) + (context_bytes or 0),
        "context_bytes": context_bytes,
        "seconds": sum(stage.seconds for stage in stages),
        "moved_bytes": made.estimate.moved_bytes,
        "num_out_of_memory": 0,
        "stages": stages,
    }
    return Measurement(**{**facts, **changes})


def report_nouns(costs: Profile, made: Plan) -> dict[str, object]:
    """All that a report takes."""
    return {
        "profile": costs,
        "plan": made,
        "comparison": examples.comparison(made),
        "frontier": frontier(made),
        "timeline": timeline(costs, made),
        "measurement": measurement(made),
    }
