"""Nouns that plots need beyond `tests.reports.examples`: spans, a frontier, a measurement, a crowded pipeline."""

import dataclasses
import itertools

from hypothesis import strategies as st

from tests.reports import examples
from vramtune.schema import (
    Frontier,
    FrontierPoint,
    MeasuredStage,
    Measurement,
    MemoryLevel,
    ModeEstimate,
    Plan,
    Profile,
    Span,
    Timeline,
)
from vramtune.units import GIB

MODES = (
    ("all resident", 12.5, 1.0),
    ("model offload", 6.2, 1.1),
    ("group offload, block, stream", 5.93, 1.6),
    ("group offload, block", 5.93, 15.0),
    ("group offload, leaf, stream", 5.89, 1.11),
    ("group offload, leaf", 5.89, 15.0),
    ("sequential offload", 5.89, 2.0),
)
"""Name, peak in GiB, seconds as a multiple of the plan's."""


def crowded() -> tuple[Profile, Plan]:
    """Eight stages, five components, long names, and a budget that the plan is nowhere near."""
    encoders = tuple(
        examples.component(f"text_encoder{suffix}", mib, 6) for suffix, mib in (("", 235), ("_2", 1325), ("_3", 9083))
    )
    dit, vae = examples.component("transformer", 4700, 60), examples.component("vae", 160, 4, used_mib=95)
    encoding = tuple(
        examples.stage(f"{encoder.name}{suffix}", examples.activity(encoder, 0.02, 60))
        for suffix in ("", " (2)")
        for encoder in encoders
    )
    stages = (
        *encoding,
        examples.stage("transformer", examples.activity(dit, 0.4, 880), num_iterations=28),
        examples.stage("vae.decode", examples.activity(vae, 1.4, 2600, method="decode")),
    )
    profile = examples.profile("StableDiffusion3ControlNetInpaintingPipeline", (*encoders, dit, vae), stages)
    device = dataclasses.replace(
        profile.device, name="GeForce RTX 4060 Laptop GPU", usable_bytes=40 * GIB, total_bytes=40 * GIB
    )
    profile = dataclasses.replace(profile, device=device)
    kept = {component.name: (len(component.groups),) * 8 for component in profile.components}
    return profile, examples.plan(profile, 40, {**kept, "transformer": (20,) * 8})


CASES = {
    "sdxl": (examples.sdxl(), examples.sdxl_plan()),
    "flux": (examples.flux(), examples.flux_plan()),
    "crowded": crowded(),
}


def timeline(profile: Profile, plan: Plan) -> Timeline:
    """With spans: visits one after the other, each streamed group copied during the visit before."""
    spans: list[Span] = []
    bare = examples.timeline(profile, plan)
    for index, levels in itertools.groupby(bare.memory, key=lambda level: level.stage):
        visits = plan.stages[index].visits
        for number, level in enumerate(levels):
            iteration, visit = divmod(number, len(visits))
            placement, group = plan.placements[visits[visit][0]], visits[visit][1]
            span = Span(
                engine="compute",
                component=placement.component,
                group=placement.groups[group].name,
                stage=index,
                iteration=iteration,
                is_kept=group < placement.kept[index],
                start_seconds=level.start_seconds,
                end_seconds=level.end_seconds,
            )
            spans.append(span)
            if not span.is_kept:
                length = level.end_seconds - level.start_seconds
                start = max(level.start_seconds - length, 0.0)
                copy = dataclasses.replace(span, engine="copy", start_seconds=start, end_seconds=start + length / 2)
                spans.append(copy)
    return dataclasses.replace(bare, spans=tuple(spans))


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    """Of SDXL's plan: levels of any height and length, in some stages more of them than a plot can show."""
    sdxl = examples.timeline(examples.sdxl(), examples.sdxl_plan())
    gib = st.integers(0, 4).map(lambda num: num * GIB)
    levels: list[MemoryLevel] = []
    now = 0.0
    for stage in range(len(sdxl.plan.stages)):
        seconds = draw(st.lists(st.sampled_from([1e-4, 0.01, 1.0]), min_size=1, max_size=3))
        heights = [
            MemoryLevel(
                start_seconds=0.0,
                end_seconds=0.0,
                stage=stage,
                component_bytes={"unet": draw(gib), "vae": draw(gib)},
                slot_bytes=draw(gib),
                activation_bytes=draw(gib),
                pipeline_bytes=draw(gib),
                workspace_bytes=draw(gib),
                context_bytes=draw(gib),
            )
            for _ in range(5)
        ]
        lengths = seconds * draw(st.sampled_from([1, 120]))
        for length, level in zip(lengths, itertools.cycle(heights), strict=False):
            levels.append(dataclasses.replace(level, start_seconds=now, end_seconds=now + length))
            now += length
    return dataclasses.replace(sdxl, memory=tuple(levels))


def frontier(plan: Plan) -> Frontier:
    """Five budgets below the plan's, and the stock modes, of which one needs more than the card has."""
    seconds = plan.estimate.seconds
    points = tuple(
        FrontierPoint(
            budget_bytes=int(share * plan.budget_bytes),
            permissions=(),
            estimate=dataclasses.replace(
                plan.estimate,
                peak_bytes=int(share * plan.budget_bytes),
                seconds=seconds * (1.5 - 0.5 * share),
                bound_seconds=seconds * (1.3 - 0.3 * share),
            ),
        )
        for share in (0.5, 0.6, 0.7, 0.8, 0.9)
    )
    stock = tuple(
        ModeEstimate(
            mode=name,
            fits=None,
            peak_bytes=int(gib * GIB),
            seconds=ratio * seconds,
            compute_seconds=0.98 * seconds,
            moved_bytes=GIB,
            moved_back_bytes=0,
            host_bytes=0,
            **examples.likely(ratio * seconds, int(gib * GIB)),
        )
        for name, gib, ratio in MODES
    )
    return Frontier(
        pipeline_class=plan.pipeline_class, workload=plan.workload, device=examples.DEVICE, points=points, stock=stock
    )


def measurement(plan: Plan, *, context_bytes: int | None = 300 * 2**20) -> Measurement:
    """A call a tenth slower than the plan predicts, of all its stages."""
    stages = tuple(
        MeasuredStage(
            name=stage.name,
            seconds=1.1 * stage.seconds,
            exposed_copy_seconds=0.1 * stage.seconds,
            moved_bytes=stage.moved_bytes,
            peak_bytes=stage.peak_bytes - 300 * 2**20,
        )
        for stage in plan.estimate.stages
    )
    return Measurement(
        device_name=plan.device_name,
        peak_bytes=max(stage.peak_bytes for stage in stages) + (context_bytes or 0),
        context_bytes=context_bytes,
        seconds=1.1 * plan.estimate.seconds,
        moved_bytes=plan.estimate.moved_bytes,
        num_out_of_memory=0,
        stages=stages,
    )
