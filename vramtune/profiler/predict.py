"""Predict a profile: the pipeline's own `__call__` runs, its components on tensors without values."""

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version

from vramtune.contract import (
    CALL,
    Pipeline,
    excluded_components,
    expect_pipeline,
    missing_package,
    offload_sequence,
    refuse_layer_offload,
    refuse_quantized,
)
from vramtune.errors import TraceError, UsageError, VramtuneError
from vramtune.profiler.arguments import arguments_to_trace, workload_of
from vramtune.profiler.inventory import weigh_component
from vramtune.profiler.record import Recording, record_calls
from vramtune.profiler.stages import build_stages
from vramtune.profiler.trace import Trace
from vramtune.schema import Component, Device, Profile, Stage, Variant
from vramtune.units import MIB

REAL_BYTES = (MIB, 64 * MIB)
"""Outputs up to the first are real zeros for the pipeline's own code; where that reads more, those up to the second.

Neither covers a decoded video, which is never materialised."""


def predict_profile(
    pipe: Pipeline,
    *,
    method: str = CALL,
    call_kwargs: Mapping[str, object],
    device: Device,
    on_call: Callable[[str], None] | None = None,
) -> Profile:
    """What one call of the pipeline would cost on a device, without that device and without weights.

    The call is of `method`; `call_kwargs` are its own (a prompt is made up where none is given); `on_call` gets the
    name of each component's call when its trace begins. The pipeline is left as it was. Raises `UsageError` for what is not a
    pipeline, for one under layer-wise offload, for quantized weights, for arguments that the call refuses and for calls
    that run no component;
    `TraceError` for code that depends on values.
    """
    expect_pipeline(pipe)
    refuse_layer_offload(pipe)
    refuse_quantized(pipe)
    kwargs = arguments_to_trace(pipe, method, call_kwargs)
    recording = _recorded(pipe, method, kwargs, on_call or (lambda name: None))
    if not recording.calls:
        raise UsageError(f"This call of {type(pipe).__name__}.{method} runs no component: there is nothing to plan.")
    components = _weighed(recording)
    by_name = {component.name: component for component in components}
    stages = build_stages(recording, [call.trace for call in recording.calls], by_name, device)
    return Profile(
        pipeline_class=type(pipe).__name__,
        workload=workload_of(method, call_kwargs),
        device=device,
        components=components,
        stages=stages,
        variants=_variants(recording, stages, by_name, device),
        offload_sequence=offload_sequence(pipe),
        excluded=excluded_components(pipe),
        versions={name: _version(name) for name in ("torch", "diffusers", "transformers", "vramtune")},
    )


def _recorded(pipe: Pipeline, method: str, kwargs: Mapping[str, object], on_call: Callable[[str], None]) -> Recording:
    """Run it; a second time where the pipeline's own code reads what its components return."""
    for largest_real_bytes in REAL_BYTES:
        try:
            return record_calls(pipe, kwargs, method=method, largest_real_bytes=largest_real_bytes, on_call=on_call)
        except VramtuneError:
            raise
        except Exception as error:
            failure = error
    name, reason = type(pipe).__name__, f"{type(failure).__name__}: {failure}"
    if package := missing_package(failure):
        raise UsageError(
            f"{name} needs the package {package}, which is not installed ({reason}). Install it: `pip install {package}`."
        ) from failure
    if isinstance(failure, RuntimeError):
        raise TraceError(
            f"Cannot predict {name}: its own code failed on tensors without values ({reason}). "
            "Pass what it computes there as an argument, or measure on the GPU."
        ) from failure
    raise UsageError(f"{name} refused the call. {reason}") from failure


def _weighed(recording: Recording) -> tuple[Component, ...]:
    traces: dict[str, dict[Trace, None]] = {name: {} for name in recording.components}
    for call in recording.calls:
        traces[call.trace.component][call.trace] = None
        if call.trace.tiled is not None:
            traces[call.trace.component][call.trace.tiled] = None
    return tuple(
        weigh_component(name, component, list(traces[name])) for name, component in recording.components.items()
    )


def _variants(
    recording: Recording, stages: tuple[Stage, ...], components: Mapping[str, Component], device: Device
) -> tuple[Variant, ...]:
    """The same calls with VAE tiling on, if that changes a peak."""
    if all(call.trace.tiled is None for call in recording.calls):
        return ()
    traces = [call.trace.tiled or call.trace for call in recording.calls]
    tiled = build_stages(recording, traces, components, device)
    if [stage.activation_bytes for stage in tiled] == [stage.activation_bytes for stage in stages]:
        return ()
    return (Variant(permission="vae_tiling", stages=tiled),)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from its source tree
        return "not installed"
