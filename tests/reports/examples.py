"""Hand-made nouns shaped like SDXL and Flux: no pipeline, no profiler, no tuner behind them."""

from dataclasses import replace

from tests.profiles import weights as weights_of
from vramtune.schema import (
    Activity,
    Comparison,
    Component,
    Device,
    Estimate,
    Extreme,
    Layer,
    MemoryLevel,
    ModeEstimate,
    Placement,
    Plan,
    PlannedStage,
    Profile,
    Reason,
    Segment,
    Stage,
    StageEstimate,
    Timeline,
    WeightGroup,
    Workload,
)
from vramtune.units import GIB, MIB

DEVICE = Device(
    name="GeForce RTX 4060",
    total_bytes=8 * GIB,
    usable_bytes=int(7.6 * GIB),
    context_bytes=300 * MIB,
    workspace_bytes=32 * MIB,
    pinned_copy_bytes_per_second=12.0 * GIB,
    pageable_copy_bytes_per_second=4.0 * GIB,
    readback_bytes_per_second=3.0 * GIB,
    overlap_fraction=0.9,
    copy_latency_seconds=1e-5,
    flops_per_second={"float16": 60e12, "bfloat16": 60e12, "float32": 15e12},
    efficiency_fraction={"matmul": 0.7, "convolution": 0.5, "attention": 0.6, "pointwise": 0.5, "memory": 0.8},
    memory_bytes_per_second=272e9,
    launch_seconds=5e-6,
)


def component(name: str, weight_mib: int, num_groups: int, *, used_mib: int | None = None) -> Component:
    """A component of equal groups, one layer each, the first of them its root."""
    used = weight_mib if used_mib is None else used_mib
    sizes = [used * MIB // num_groups] * num_groups
    groups = tuple(WeightGroup(name=f"g{i}", weight_bytes=b, modules=(f"m{i}",)) for i, b in enumerate(sizes))
    layers = tuple(
        Layer(name=f"m{i}", parameters=weights_of(b, 2), group=i, block=f"m{i}") for i, b in enumerate(sizes)
    )
    return Component(
        name=name,
        class_name=f"Tiny{name.title().replace('_', '')}",
        dtype="bfloat16",
        parameters=weights_of(weight_mib * MIB, 2 * num_groups),
        groups=groups,
        layers=layers,
    )


def activity(weights: Component, seconds: float, activation_mib: int, *, method: str = "forward") -> Activity:
    """One call of a component: a segment per layer, activations swelling towards the middle."""
    num = len(weights.layers)
    swell = [1 - abs(2 * i / max(num - 1, 1) - 1) ** 2 for i in range(num)]
    segments = tuple(
        Segment(
            layer=i, layer_seconds=seconds / num, layer_activation_bytes=int(activation_mib * MIB * (0.4 + 0.6 * s))
        )
        for i, s in enumerate(swell)
    )
    return Activity(
        component=weights.name, method=method, num_calls=1, segments=segments, activation_bytes=activation_mib * MIB
    )


def stage(name: str, *activities: Activity, num_iterations: int = 1) -> Stage:
    return Stage(
        name=name, num_iterations=num_iterations, activities=activities, pipeline_bytes=4 * MIB, pipeline_seconds=1e-4
    )


def profile(pipeline_class: str, components: tuple[Component, ...], stages: tuple[Stage, ...]) -> Profile:
    return Profile(
        pipeline_class=pipeline_class,
        workload=Workload(call_kwargs={"height": 1024, "width": 1024}),
        device=DEVICE,
        components=components,
        stages=stages,
        offload_sequence=tuple(c.name for c in components if c.used_bytes),
        versions={"diffusers": "0.42.1"},
    )


def placement(weights: Component, active: tuple[bool, ...], kept: tuple[int, ...]) -> Placement:
    return Placement(component=weights.name, methods=(), groups=weights.groups, active=active, kept=kept, num_slots=3)


def plan(costs: Profile, budget_gib: float, kept: dict[str, tuple[int, ...]]) -> Plan:
    """A plan with the given groups kept, its estimate a plausible one."""
    placements = tuple(
        placement(c, tuple(c.name in s.components for s in costs.stages), kept[c.name])
        for c in costs.components
        if c.used_bytes
    )
    estimates = tuple(stage_estimate(costs, placements, index) for index in range(len(costs.stages)))
    seconds = sum(e.seconds for e in estimates)
    asked = int(budget_gib * GIB)
    return Plan(
        pipeline_class=costs.pipeline_class,
        workload=costs.workload,
        device_name=costs.device.name,
        asked_bytes=asked,
        budget_bytes=min(asked, costs.device.usable_bytes),
        stages=tuple(
            PlannedStage(
                name=s.name,
                num_iterations=s.num_iterations,
                calls=s.calls,
                visits=tuple(
                    (p, g)
                    for p, placed in enumerate(placements)
                    if placed.active[index]
                    for g in range(len(placed.groups))
                ),
            )
            for index, s in enumerate(costs.stages)
        ),
        placements=placements,
        permissions=(),
        estimate=Estimate(
            peak_bytes=max(e.peak_bytes for e in estimates),
            seconds=seconds,
            first_call_seconds=seconds + 1.5,
            bound_seconds=seconds / 1.025,
            moved_bytes=sum(e.moved_bytes for e in estimates),
            locked_bytes=sum(p.locked_bytes for p in placements),
            pageable_bytes=0,
            **likely(seconds, max(e.peak_bytes for e in estimates)),
            stages=estimates,
        ),
        reasons=reasons(estimates, min(asked, costs.device.usable_bytes)),
    )


def likely(seconds: float, peak_bytes: int) -> dict[str, Extreme]:
    """A fifth faster to a third slower, and 4% smaller or larger."""
    return {
        "low": Extreme(seconds=0.8 * seconds, peak_bytes=round(0.96 * peak_bytes)),
        "high": Extreme(seconds=1.3 * seconds, peak_bytes=round(1.04 * peak_bytes)),
    }


def reasons(estimates: tuple[StageEstimate, ...], budget_bytes: int) -> tuple[Reason, ...]:
    """What limits the pace and the peak, and what more memory would save: as much as estimates alone tell."""
    slowest = max(estimates, key=lambda e: e.exposed_copy_seconds)
    highest = max(estimates, key=lambda e: e.peak_bytes)
    weights = highest.kept_bytes + highest.slot_bytes
    copies = slowest.moved_bytes / DEVICE.pinned_copy_bytes_per_second
    pace = Reason(
        kind="copy_bound",
        stage=slowest.name,
        num_bytes={"streamed": slowest.moved_bytes},
        seconds={"copies": copies, "compute": slowest.compute_seconds, "exposed": slowest.exposed_copy_seconds},
    )
    return (
        pace if slowest.exposed_copy_seconds else Reason(kind="compute_bound"),
        Reason(
            kind="peak",
            stage=highest.name,
            num_bytes={
                "weights": weights,
                "others": highest.peak_bytes - weights,
                "free": budget_bytes - highest.peak_bytes,
            },
        ),
        Reason(kind="more_memory", seconds={"one_gib": 0.106, "unlimited": 0.34}),
    )


def stage_estimate(costs: Profile, placements: tuple[Placement, ...], index: int) -> StageEstimate:
    stage = costs.stages[index]
    absent = sum(sum(g.weight_bytes for g in p.groups) - p.kept_bytes(index) for p in placements if p.active[index])
    compute = stage.num_iterations * stage.seconds
    moved = stage.num_iterations * absent
    return StageEstimate(
        name=stage.name,
        num_iterations=stage.num_iterations,
        kept_bytes=sum(p.kept_bytes(index) for p in placements),
        slot_bytes=sum(p.slot_bytes(index) for p in placements),
        activation_bytes=stage.activation_bytes + stage.pipeline_bytes,
        fixed_bytes=DEVICE.context_bytes + DEVICE.workspace_bytes,
        seconds=max(compute, moved / DEVICE.pinned_copy_bytes_per_second),
        compute_seconds=compute,
        moved_bytes=moved,
    )


def timeline(costs: Profile, made: Plan) -> Timeline:
    """A level per segment; every stage's seconds spread evenly over its segments."""
    levels, now = [], 0.0
    for index, (stage, estimate) in enumerate(zip(costs.stages, made.estimate.stages, strict=True)):
        segments = [s for a in stage.activities for s in a.segments] * stage.num_iterations
        step = estimate.seconds / len(segments)
        for segment in segments:
            level = MemoryLevel(
                start_seconds=now,
                end_seconds=now + step,
                stage=index,
                component_bytes={p.component: p.kept_bytes(index) for p in made.placements},
                slot_bytes=sum(p.slot_bytes(index) for p in made.placements),
                activation_bytes=segment.activation_bytes,
                pipeline_bytes=stage.pipeline_bytes,
                workspace_bytes=DEVICE.workspace_bytes,
                context_bytes=DEVICE.context_bytes,
            )
            levels.append(level)
            now += step
    names = tuple(c.name for c in costs.components_in_call_order)
    return Timeline(plan=made, components=names, spans=(), memory=tuple(levels))


def comparison(made: Plan, *, device: Device = DEVICE) -> Comparison:
    """Three stock modes beside the plan: one that does not fit, two that are slower."""
    seconds, budget = made.estimate.seconds, made.budget_bytes

    def mode(name: str, peak: float, slower: float) -> ModeEstimate:
        peak_bytes = int(peak * budget)
        return ModeEstimate(
            mode=name,
            fits=peak_bytes <= budget,
            peak_bytes=peak_bytes,
            seconds=slower * seconds,
            compute_seconds=0.9 * seconds,
            moved_bytes=20 * GIB,
            moved_back_bytes=0,
            host_bytes=0,
            **likely(slower * seconds, peak_bytes),
        )

    stock = (
        mode("all resident", 1.4, 0.95),
        mode("model offload", 0.98, 1.7),
        mode("group offload, block, stream", 0.4, 9.5),
    )
    return Comparison(
        pipeline_class=made.pipeline_class,
        workload=made.workload,
        device=device,
        asked_bytes=made.asked_bytes,
        budget_bytes=budget,
        plan=made,
        stock=stock,
    )


def sdxl() -> Profile:
    first, second = component("text_encoder", 235, 4), component("text_encoder_2", 1325, 12)
    unet, vae = component("unet", 4897, 44), component("vae", 160, 4, used_mib=95)
    checker = component("safety_checker", 580, 1, used_mib=0)
    stages = (
        stage("text_encoder", activity(first, 0.005, 20)),
        stage("text_encoder_2", activity(second, 0.02, 60)),
        stage("unet", activity(unet, 0.32, 880), num_iterations=50),
        stage("vae.decode", activity(vae, 1.4, 3300, method="decode")),
    )
    return profile("StableDiffusionXLPipeline", (first, second, unet, vae, checker), stages)


def sdxl_plan() -> Plan:
    kept = {
        "text_encoder": (4, 0, 0, 0),
        "text_encoder_2": (0, 12, 0, 0),
        "unet": (20, 20, 40, 20),
        "vae": (4, 4, 4, 4),
    }
    return plan(sdxl(), 6, kept)


def flux() -> Profile:
    clip, t5 = component("text_encoder", 235, 4), component("text_encoder_2", 9083, 72)
    dit, vae = component("transformer", 22700, 190), component("vae", 160, 4, used_mib=95)
    stages = (
        stage("text_encoder", activity(clip, 0.005, 20)),
        stage("text_encoder_2", activity(t5, 0.14, 220)),
        stage("transformer", activity(dit, 2.1, 700), num_iterations=28),
        stage("vae.decode", activity(vae, 0.7, 2600, method="decode")),
    )
    return profile("FluxPipeline", (clip, t5, dit, vae), stages)


def flux_plan() -> Plan:
    kept = {
        "text_encoder": (4, 0, 0, 0),
        "text_encoder_2": (9, 30, 0, 0),
        "transformer": (20, 20, 50, 20),
        "vae": (4, 4, 4, 4),
    }
    return plan(flux(), 8, kept)


def in_memory(profile: Profile) -> Profile:
    """The same profile of weights none of which lies in a file."""

    def of(groups: tuple[WeightGroup, ...]) -> tuple[WeightGroup, ...]:
        return tuple(replace(group, file_bytes=0) for group in groups)

    components = (
        replace(each, file_bytes=0, groups=of(each.groups), finer_groups=of(each.finer_groups))
        for each in profile.components
    )
    return replace(profile, components=tuple(components))
