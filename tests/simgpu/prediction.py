"""The same call predicted without the simulated accelerator and counted on it."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from diffusers import DiffusionPipeline

from tests import tiny_pipelines
from tests.simgpu import load
from tests.simgpu.stock_modes import MODES
from vramtune.contract import METHODS, modules_of
from vramtune.predict import predict_profile
from vramtune.schema import Activity, Device, ModeEstimate, Profile, Stage, call_name
from vramtune.tuner.stock_modes import stock_modes

# Those of a mid-range card, divided by 1000: a MB of the tiny pipelines stands for a GB. Latencies are life-size.
RATES = {
    "flops_per_second": 30e9,
    "memory_bytes_per_second": 500e6,
    "launch_seconds": 5e-6,
    "pinned_copy_bytes_per_second": 25e6,
    "pageable_copy_bytes_per_second": 6e6,
    "pinned_readback_bytes_per_second": 25e6,
    "readback_bytes_per_second": 6e6,
    "copy_latency_seconds": 10e-6,
}
COUNTED_AS = {
    "all resident": "resident",
    "model offload": "model offload",
    "sequential offload": "sequential offload",
    "group offload, block": "group, block",
    "group offload, block, stream": "group, block, stream",
    "group offload, leaf": "group, leaf",
    "group offload, leaf, stream": "group, leaf, stream",
}
"""The predictor's names of the stock modes, and those of `stock_modes.MODES`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """One call as the simulated accelerator counted it."""

    seconds: float
    peak_bytes: int
    moved_bytes: int
    moved_back_bytes: int


def sim_device() -> Device:
    """The simulated accelerator as the predictor sees it: no context, every kernel at the peak rates."""
    sim = load()
    rates = sim.rates()
    capacity = sim.DEFAULT_CAPACITY_BYTES
    return Device(
        kernels="cpu",
        name="sim",
        total_bytes=capacity,
        usable_bytes=capacity,
        context_bytes=0,
        workspace_bytes=0,
        pinned_copy_bytes_per_second=rates.pinned_copy_bytes_per_second,
        pageable_copy_bytes_per_second=rates.pageable_copy_bytes_per_second,
        readback_bytes_per_second=rates.readback_bytes_per_second,
        overlap_fraction=1.0,
        copy_latency_seconds=rates.copy_latency_seconds,
        flops_per_second=dict.fromkeys(("float32", "float16", "bfloat16"), rates.flops_per_second),
        memory_bytes_per_second=rates.memory_bytes_per_second,
        efficiency_fraction=dict.fromkeys(("matmul", "convolution", "attention", "pointwise", "memory"), 1.0),
        launch_seconds=rates.launch_seconds,
        operation_seconds=rates.enqueue_seconds,
    )


def predicted_profile(name: str) -> Profile:
    """The named tiny pipeline's call."""
    kwargs = {"prompt": "a photo of a cat", "num_inference_steps": 2, "output_type": "pt"}
    return predicted_call(tiny_pipelines.build(name), kwargs | tiny_pipelines.CALL[name])


def predicted_call(pipe: DiffusionPipeline, call_kwargs: dict[str, Any], *, allow: tuple[str, ...] = ()) -> Profile:
    """A pipeline's call. Reserved is what is allocated, as on the simulated accelerator."""
    profile = predict_profile(pipe, call_kwargs=call_kwargs, device=sim_device(), allow=allow)
    variants = (replace(variant, stages=tuple(map(_as_allocated, variant.stages))) for variant in profile.variants)
    return replace(profile, stages=tuple(map(_as_allocated, profile.stages)), variants=tuple(variants))


def _as_allocated(stage: Stage) -> Stage:
    def allocated(activity: Activity) -> Activity:
        return replace(activity, activation_bytes=max(s.activation_bytes for s in activity.segments))

    return replace(stage, activities=tuple(map(allocated, stage.activities)))


def both(name: str) -> Iterator[tuple[ModeEstimate, Counted]]:
    """Every stock mode of the named pipeline, predicted and counted.

    Without LTX at block level: diffusers leaves the VAE's weights on the CPU there, and the call fails.
    """
    for estimate in stock_modes(predicted_profile(name)):
        if name == "ltx" and "block" in estimate.mode:
            continue
        pipe = tiny_pipelines.build(name)
        MODES[COUNTED_AS[estimate.mode]](pipe)
        yield estimate, counted_call(pipe, name)


def counted_call(pipe: DiffusionPipeline, name: str) -> Counted:
    """A call that follows another one, up to its last kernel: fetching the output is the caller's business."""
    sim = load()
    tiny_pipelines.run(pipe, name)
    gc.collect()  # what earlier pipelines held must not count
    sim.synchronize()
    sim.reset()
    output = tiny_pipelines.run(pipe, name)
    sim.synchronize()
    counters = sim.counters()
    del output
    return Counted(
        seconds=sim.virtual_seconds(),
        peak_bytes=sim.max_memory_allocated(),
        moved_bytes=counters.moved_bytes,
        moved_back_bytes=counters.moved_back_bytes,
    )


def predicted_activation_bytes(name: str) -> dict[str, int]:
    """Highest activation bytes by component and method."""
    highest: dict[str, int] = {}
    for activity in (activity for stage in predicted_profile(name).stages for activity in stage.activities):
        called = call_name(activity.component, activity.method)
        highest[called] = max(highest.get(called, 0), activity.activation_bytes)
    return highest


def counted_activation_bytes(name: str) -> dict[str, int]:
    """The same by the device's counters, around each call of a resident component."""
    sim = load()
    pipe = tiny_pipelines.build(name).to("sim")
    highest: dict[str, int] = {}
    for component, module in modules_of(pipe).items():
        for method in METHODS:
            if callable(original := getattr(module, method, None)):
                vars(module)[method] = _counting(original, call_name(component, method), highest)
    tiny_pipelines.run(pipe, name)
    sim.synchronize()
    return highest


def _counting(original: Callable[..., Any], called: str, highest: dict[str, int]) -> Callable[..., Any]:
    sim = load()

    def counting(*args: Any, **kwargs: Any) -> Any:
        before = sim.memory_allocated()
        sim.reset_peak_memory_stats()
        output = original(*args, **kwargs)
        highest[called] = max(highest.get(called, 0), sim.max_memory_allocated() - before)
        return output

    return counting


def deviation(predicted: float, counted: float) -> float:
    """By how much the prediction is off: 0.02 is two percent too high."""
    return predicted / counted - 1
