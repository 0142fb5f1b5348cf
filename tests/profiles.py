"""Profiles made by hand and by hypothesis, for everything that needs no pipeline."""

from collections.abc import Sequence

from hypothesis import strategies as st

from vramtune.schema import Activity, Component, Device, Layer, Profile, Segment, Stage, WeightGroup, Weights, Workload

GIB = 2**30
MIB = 2**20


def device(**changes: object) -> Device:
    """A round-numbered GPU: 1 GB/s of copies without latency, no context, memory by the byte."""
    facts = {
        "name": "Test GPU",
        "total_bytes": 24 * GIB,
        "usable_bytes": 24 * GIB,
        "context_bytes": 0,
        "workspace_bytes": 0,
        "pinned_copy_bytes_per_second": 1e9,
        "pageable_copy_bytes_per_second": 0.5e9,
        "readback_bytes_per_second": 0.25e9,
        "overlap_fraction": 1.0,
        "copy_latency_seconds": 0.0,
        "flops_per_second": {"float32": 1e12, "float16": 4e12, "bfloat16": 4e12},
        "memory_bytes_per_second": 1e11,
        "efficiency_fraction": {"matmul": 1.0, "convolution": 1.0, "attention": 1.0, "pointwise": 1.0, "memory": 1.0},
        "launch_seconds": 1e-6,
        "kernels": "cpu",
    }
    return Device(**{**facts, **changes})


def weights(num_bytes: int, num_tensors: int = 1) -> Weights:
    """Tensors that fill their 512-byte units."""
    return Weights(num_bytes=num_bytes, allocated_bytes=num_bytes, num_tensors=num_tensors)


def component(name: str, sizes: Sequence[int], *, root_bytes: int = 0) -> Component:
    """A component whose groups are one layer each, every layer a block."""
    groups = (
        WeightGroup(name="root", weight_bytes=root_bytes, modules=()),
        *(WeightGroup(name=f"blocks.{i}", weight_bytes=n, modules=(f"blocks.{i}",)) for i, n in enumerate(sizes)),
    )
    layers = tuple(
        Layer(name=f"blocks.{i}", parameters=weights(n, 1), group=i + 1, block=f"blocks.{i}")
        for i, n in enumerate(sizes)
    )
    return Component(
        name=name,
        class_name="Tiny",
        dtype="float16",
        parameters=weights(root_bytes + sum(sizes), len(sizes) + 1),
        groups=groups,
        layers=layers,
    )


def activity(
    of: Component,
    seconds: Sequence[float],
    *,
    method: str = "forward",
    num_calls: int = 1,
    activation_bytes: int = 0,
    layers: Sequence[int] | None = None,
) -> Activity:
    """Calls that visit the layers in the order given (each once, in order, if left out)."""
    order = range(len(of.layers)) if layers is None else layers
    return Activity(
        component=of.name,
        method=method,
        num_calls=num_calls,
        segments=tuple(
            Segment(layer=layer, layer_seconds=span, layer_activation_bytes=activation_bytes)
            for layer, span in zip(order, seconds, strict=True)
        ),
        activation_bytes=activation_bytes,
    )


def stage(name: str, num_iterations: int, *activities: Activity, pipeline_seconds: float = 0.0) -> Stage:
    return Stage(
        name=name,
        num_iterations=num_iterations,
        activities=activities,
        pipeline_bytes=0,
        pipeline_seconds=pipeline_seconds,
    )


def profile(on: Device, components: Sequence[Component], stages: Sequence[Stage], **more: object) -> Profile:
    return Profile(
        pipeline_class="TinyPipeline",
        workload=Workload(call_kwargs={"prompt": "a fox"}),
        device=on,
        components=tuple(components),
        stages=tuple(stages),
        **more,
    )


@st.composite
def profiles(
    draw: st.DrawFn, *, max_components: int = 3, max_groups: int = 4, max_stages: int = 3, max_steps: int = 5
) -> Profile:
    """Small profiles: unequal groups, oversize leaves, several visits, units idle in between, glue."""
    sizes = st.one_of(st.integers(1, 40), st.integers(100, 200)).map(lambda n: n * MIB)
    spans = st.floats(0.001, 0.2).map(lambda x: round(x, 4))
    components = []
    for index in range(draw(st.integers(1, max_components))):
        groups = draw(st.lists(sizes, min_size=1, max_size=max_groups))
        components.append(component(f"c{index}", groups, root_bytes=draw(st.integers(0, 5)) * MIB))
    order = draw(st.permutations(components))
    runs = [*order, *draw(st.lists(st.sampled_from(components), max_size=max_stages - len(order)))]
    stages = []
    for index, running in enumerate(runs):
        frames = draw(st.sampled_from([1, 1, 1, 2]))
        layers = [*range(len(running.layers))] * frames
        call = activity(
            running, [draw(spans) for _ in layers], layers=layers, activation_bytes=draw(st.integers(0, 60)) * MIB
        )
        steps = draw(st.integers(1, max_steps))
        stages.append(stage(f"s{index}", steps, call, pipeline_seconds=draw(st.sampled_from([0.0, 0.01]))))
    return profile(device(), components, stages)
