"""Hand-made nouns that follow from a plan of the examples: a timeline with spans, a frontier, a measured call."""

from collections.abc import Iterator

from tests.reports import examples
from vramtune.schema import (
    Engine,
    Estimate,
    Frontier,
    FrontierPoint,
    MeasuredStage,
    Measurement,
    Plan,
    Profile,
    Span,
    StageEstimate,
    Timeline,
)
from vramtune.units import GIB, MIB


def timeline(profile: Profile, plan: Plan) -> Timeline:
    """That of the examples, with every visit as a span: what is not kept is copied while the group before computes."""
    bare = examples.timeline(profile, plan)
    spans, now = [], 0.0
    for index, (stage, estimate) in enumerate(zip(plan.stages, plan.estimate.stages, strict=True)):
        step = estimate.seconds / stage.num_iterations / len(stage.visits)
        for iteration in range(stage.num_iterations):
            for visit in stage.visits:
                spans += _spans(plan, index, iteration, visit, now, step)
                now += step
    return Timeline(plan=plan, components=bare.components, spans=tuple(spans), memory=bare.memory)


def _spans(plan: Plan, stage: int, iteration: int, visit: tuple[int, int], now: float, step: float) -> Iterator[Span]:
    placement, group = plan.placements[visit[0]], visit[1]
    is_kept = group < placement.kept[stage]
    engines: list[tuple[Engine, float, float]] = [("compute", now, now + step)]
    if not is_kept:
        engines.insert(0, ("copy", max(now - 0.9 * step, 0.0), now))
    for engine, start, end in engines:
        yield Span(
            engine=engine,
            component=placement.component,
            group=placement.groups[group].name,
            stage=stage,
            iteration=iteration,
            is_kept=is_kept,
            start_seconds=start,
            end_seconds=end,
        )


def estimate(
    seconds: float, *, peak_bytes: int, bound_seconds: float, compute_seconds: float | None = None
) -> Estimate:
    """An estimate of one stage."""
    compute = seconds if compute_seconds is None else compute_seconds
    stage = StageEstimate(
        name="unet",
        num_iterations=1,
        kept_bytes=peak_bytes,
        slot_bytes=0,
        activation_bytes=0,
        fixed_bytes=0,
        seconds=seconds,
        compute_seconds=compute,
        moved_bytes=0,
    )
    return Estimate(
        peak_bytes=peak_bytes,
        seconds=seconds,
        first_call_seconds=seconds,
        bound_seconds=bound_seconds,
        moved_bytes=0,
        locked_bytes=0,
        pageable_bytes=0,
        **examples.likely(seconds, peak_bytes),
        stages=(stage,),
    )


def frontier(plan: Plan, *points: FrontierPoint) -> Frontier:
    """The given points, or three budgets, each faster than the one before: two that wait for loads, one that does not."""
    seconds, bound = plan.estimate.seconds, plan.estimate.bound_seconds
    usual = tuple(
        FrontierPoint(
            budget_bytes=int(gib * GIB),
            permissions=(),
            estimate=estimate(
                slower * seconds, peak_bytes=int(gib * GIB) - 20 * MIB, bound_seconds=bound, compute_seconds=seconds
            ),
        )
        for gib, slower in ((4.5, 1.3), (5, 1.1), (6, 1.0))
    )
    return Frontier(
        pipeline_class=plan.pipeline_class,
        workload=plan.workload,
        device=examples.DEVICE,
        points=points or usual,
        stock=examples.comparison(plan).stock,
    )


def measurement(plan: Plan, *, context_bytes: int | None = 310 * MIB, **changes: object) -> Measurement:
    """The last call, 2% slower than predicted and 1% lower."""
    stages = tuple(
        MeasuredStage(
            name=stage.name,
            seconds=1.02 * stage.seconds,
            exposed_copy_seconds=stage.seconds - stage.compute_seconds,
            moved_bytes=stage.moved_bytes,
            peak_bytes=int(0.99 * (stage.peak_bytes - examples.DEVICE.context_bytes)),
        )
        for stage in plan.estimate.stages
    )
    facts = {
        "device_name": plan.device_name,
        "peak_bytes": max(stage.peak_bytes for stage in stages) + (context_bytes or 0),
        "context_bytes": context_bytes,
        "seconds": sum(stage.seconds for stage in stages),
        "moved_bytes": plan.estimate.moved_bytes,
        "num_out_of_memory": 0,
        "stages": stages,
    }
    return Measurement(**{**facts, **changes})


def report_nouns(profile: Profile, plan: Plan) -> dict[str, object]:
    """All that a report takes."""
    return {
        "profile": profile,
        "plan": plan,
        "comparison": examples.comparison(plan),
        "frontier": frontier(plan),
        "timeline": timeline(profile, plan),
        "measurement": measurement(plan),
    }
