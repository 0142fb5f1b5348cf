"""Predict a profile: the pipeline's own `__call__` runs, its components on tensors without values."""

import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version

from diffusers import DiffusionPipeline

from vramtune.contract import (
    excluded_components,
    expect_pipeline,
    offload_sequence,
    refuse_layer_offload,
    refuse_quantized,
)
from vramtune.errors import TraceError, UsageError, VramtuneError
from vramtune.profiler.inventory import weigh_component
from vramtune.profiler.record import Recording, Trace, record_calls
from vramtune.profiler.stages import build_stages
from vramtune.schema import Component, Device, Profile, Scalar, Stage, Variant, Workload
from vramtune.units import MIB

DEFAULT_PROMPT = "a photo of an astronaut riding a horse on the moon"
LARGEST_REAL_BYTES = 64 * MIB
"""Even for pipelines whose own code reads values, what is larger (a decoded video) is never materialised."""
_NEEDS_VALUES = (None, "pil", "np")
"""Output types whose last step reads pixels; as tensors (`pt`) they cost the device the same."""


def predict_profile(
    pipe: DiffusionPipeline,
    *,
    call_kwargs: Mapping[str, object],
    device: Device,
    on_call: Callable[[str], None] | None = None,
) -> Profile:
    """What one call of the pipeline would cost on a device, without that device and without weights.

    `call_kwargs` are the pipeline's own (a prompt is made up where none is given); `on_call` is told the name of
    each component's call as its trace begins. The pipeline is left as it was.
    """
    kwargs = _checked(pipe, call_kwargs)
    recording = _recorded(pipe, kwargs, on_call or (lambda name: None))
    components = _weighed(recording)
    by_name = {component.name: component for component in components}
    traces = [call.trace for call in recording.calls]
    stages = build_stages(recording, traces, by_name, device)
    return Profile(
        pipeline_class=type(pipe).__name__,
        workload=Workload(call_kwargs={name: _json_value(value) for name, value in call_kwargs.items()}),
        device=device,
        components=components,
        stages=stages,
        variants=_variants(recording, stages, by_name, device),
        offload_sequence=offload_sequence(pipe),
        excluded=excluded_components(pipe),
        versions={name: _version(name) for name in ("torch", "diffusers", "transformers", "vramtune")},
    )


def _checked(pipe: DiffusionPipeline, call_kwargs: Mapping[str, object]) -> dict[str, object]:
    """The arguments to trace with; a `UsageError` before anything is touched."""
    expect_pipeline(pipe)
    refuse_layer_offload(pipe)
    refuse_quantized(pipe)
    accepted = inspect.signature(type(pipe).__call__)
    try:
        accepted.bind(pipe, **call_kwargs)
    except TypeError as error:
        names = ", ".join(list(accepted.parameters)[1:])
        raise UsageError(
            f"{type(pipe).__name__} cannot be called so: {error}. It accepts {names}."
        ) from error
    kwargs = dict(call_kwargs)
    if "prompt" in accepted.parameters and not kwargs.keys() & {"prompt", "prompt_embeds"}:
        kwargs["prompt"] = DEFAULT_PROMPT
    if "output_type" in accepted.parameters and kwargs.get("output_type") in _NEEDS_VALUES:
        kwargs["output_type"] = "pt"
    return kwargs


def _recorded(
    pipe: DiffusionPipeline, kwargs: Mapping[str, object], on_call: Callable[[str], None]
) -> Recording:
    """Run it; a second time where the pipeline's own code looks into what its components return."""
    for largest_real_bytes in (MIB, LARGEST_REAL_BYTES):
        try:
            return record_calls(pipe, kwargs, largest_real_bytes=largest_real_bytes, on_call=on_call)
        except VramtuneError:
            raise
        except Exception as error:
            failure = error
    name, reason = type(pipe).__name__, f"{type(failure).__name__}: {failure}"
    if isinstance(failure, RuntimeError):
        raise TraceError(
            f"Cannot predict {name}: its own code failed on tensors without values ({reason}). "
            "Pass what it computes there as an argument, or measure on the GPU."
        ) from failure
    raise UsageError(f"{name} refused the call. {reason}") from failure


def _weighed(recording: Recording) -> tuple[Component, ...]:
    traces: dict[str, dict[Trace, None]] = {name: {} for name in recording.parts}
    for call in recording.calls:
        traces[call.trace.component][call.trace] = None
        if call.trace.tiled is not None:
            traces[call.trace.component][call.trace.tiled] = None
    return tuple(weigh_component(name, part, list(traces[name])) for name, part in recording.parts.items())


def _variants(
    recording: Recording, stages: tuple[Stage, ...], components: Mapping[str, Component], device: Device
) -> tuple[Variant, ...]:
    """With VAE tiling on: the same calls, the VAE's as they would be; only if that needs another peak."""
    traces = [call.trace.tiled or call.trace for call in recording.calls]
    if all(call.trace.tiled is None for call in recording.calls):
        return ()
    tiled = build_stages(recording, traces, components, device)
    if [stage.activation_bytes for stage in tiled] == [stage.activation_bytes for stage in stages]:
        return ()
    return (Variant(permission="vae_tiling", stages=tiled),)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from its source tree
        return "not installed"


def _json_value(value: object) -> Scalar | list[Scalar]:
    if isinstance(value, list | tuple) and all(_is_scalar(item) for item in value):
        return list(value)
    return value if _is_scalar(value) else f"<{type(value).__name__}>"  # type: ignore[return-value]


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, str | bool | int | float)
