"""Predict a profile: the pipeline's own `__call__` runs, its components on tensors without values."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, combinations

from vramtune.contract import (
    CALL,
    Pipeline,
    excluded_components,
    expect_pipeline,
    missing_package,
    offload_sequence,
    refuse_layer_offload,
    refuse_unknown_weights,
)
from vramtune.errors import TraceError, UsageError, VramtuneError
from vramtune.profiler import many_steps
from vramtune.profiler.arguments import NOTHING, arguments_to_trace, calls_to_trace_first, workload_of
from vramtune.profiler.inventory import weigh_component
from vramtune.profiler.on_disk import with_files
from vramtune.profiler.record import Recording, record_runs
from vramtune.profiler.stages import Estimator, build_stages
from vramtune.profiler.trace import Trace
from vramtune.schema import Component, Device, Kernels, Profile, Stage, Variant, Workload
from vramtune.units import MIB

ALWAYS = ("vae_tiling",)
"""Permissions under which a call is followed whether they are given or not: what they would save is worth knowing, and a VAE
is followed soon. To follow a denoiser once more takes half as long again as the rest."""
REAL_BYTES = (MIB, 64 * MIB)
"""Outputs up to the first are real zeros for the pipeline's own code; where that reads more, those up to the second.

Neither covers a decoded video, which is never materialised."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FollowedCall:
    """What one call of a pipeline does on any card with the same kernels; only its price differs."""

    pipeline_class: str
    workload: Workload
    offload_sequence: tuple[str, ...]
    excluded: tuple[str, ...]
    components: tuple[Component, ...]
    permissions: tuple[str, ...]
    """Those under which it was followed too."""
    recordings: tuple[Recording, ...]
    """Of the call; or of two of fewer steps, from which it is drawn out."""
    num_steps: int | None
    """Steps of the call that is drawn out."""


def predict_profile(
    pipe: Pipeline,
    *,
    method: str = CALL,
    call_kwargs: Mapping[str, object],
    first: Mapping[str, Mapping[str, object]] = NOTHING,
    device: Device,
    allow: Collection[str] = (),
    on_call: Callable[[str], None] | None = None,
) -> Profile:
    """What one call of the pipeline would cost on a device, without that device and without weights.

    The call is of `method`; `call_kwargs` are its own (a prompt is made up where none is given); the methods in `first`
    are run before it, with their arguments, and only what they leave is counted. The call is also followed under the
    permissions in `allow`, and in any case under those that cost little. `on_call` gets the name of each
    component's call when its trace begins. The pipeline is left as it was. Raises `UsageError` for what is not a
    pipeline, for one under layer-wise offload, for weights of unknown kinds, for arguments that a method refuses and for calls
    that run no component; `TraceError` for code that depends on values.
    """
    call = follow(
        pipe, method=method, call_kwargs=call_kwargs, first=first, device=device, allow=allow, on_call=on_call
    )
    return with_files(price(call, device), pipe)


def follow(
    pipe: Pipeline,
    *,
    method: str = CALL,
    call_kwargs: Mapping[str, object],
    first: Mapping[str, Mapping[str, object]] = NOTHING,
    device: Device,
    allow: Collection[str] = (),
    on_call: Callable[[str], None] | None = None,
) -> FollowedCall:
    """Run the call on tensors without values, for the kernels of a device; arguments and errors of `predict_profile`."""
    expect_pipeline(pipe)
    refuse_layer_offload(pipe)
    refuse_unknown_weights(pipe)
    kwargs = arguments_to_trace(pipe, method, call_kwargs)
    before = calls_to_trace_first(pipe, first)
    permissions = tuple(dict.fromkeys((*ALWAYS, *allow)))

    def followed(steps: tuple[int, ...]) -> FollowedCall:
        ways = [kwargs | {many_steps.STEPS: number} for number in steps] or [kwargs]
        recordings = _recorded(pipe, method, ways, before, on_call or (lambda name: None), device.kernels, permissions)
        if not recordings[0].calls:
            raise UsageError(
                f"This call of {type(pipe).__name__}.{method} runs no component: there is nothing to plan."
            )
        return FollowedCall(
            pipeline_class=type(pipe).__name__,
            workload=workload_of(method, call_kwargs),
            offload_sequence=offload_sequence(pipe),
            excluded=excluded_components(pipe),
            components=_weighed(recordings),
            permissions=permissions,
            recordings=tuple(recordings),
            num_steps=many_steps.asked(kwargs) if steps else None,
        )

    few = many_steps.steps_to_follow(pipe, kwargs)
    if few and _stages(drawn := followed(few), Estimator(device)) is not None:
        return drawn
    return followed(())


def price(call: FollowedCall, device: Device) -> Profile:
    """What a call that was followed costs on a device, which must have the same kernels."""
    estimator = Estimator(device)
    stages = _stages(call, estimator)
    assert stages is not None, "it was followed whole, or seen to be drawn out"
    return Profile(
        pipeline_class=call.pipeline_class,
        workload=call.workload,
        device=device,
        components=call.components,
        stages=stages,
        permissions=call.permissions,
        variants=tuple(_variants(call, estimator, stages)),
        offload_sequence=call.offload_sequence,
        excluded=call.excluded,
        versions={name: _version(name) for name in ("torch", "diffusers", "transformers", "vramtune")},
    )


def _stages(
    call: FollowedCall, estimator: Estimator, *, permissions: Collection[str] = (), others: Sequence[Component] = ()
) -> tuple[Stage, ...] | None:
    """The call's stages, as it is or under permissions, some components being `others` then; None where it cannot be drawn
    out from calls of fewer steps."""
    by_name = {component.name: component for component in (*call.components, *others)}
    in_float8 = {component.name for component in others}

    def under_permissions(trace: Trace) -> Trace:
        """Of which one at the most changes something of a component."""
        known = (name for name in permissions if name != "fp8_weights" or trace.component in in_float8)
        return next((trace.permitted[name] for name in known if name in trace.permitted), trace)

    def traces(recording: Recording) -> list[Trace]:
        return [under_permissions(each.trace) for each in recording.calls]

    built = [build_stages(each, traces(each), by_name, estimator) for each in call.recordings]
    return built[0] if call.num_steps is None else many_steps.drawn_out(built, num_steps=call.num_steps)


def _recorded(
    pipe: Pipeline,
    method: str,
    ways: Sequence[Mapping[str, object]],
    first: Mapping[str, Mapping[str, object]],
    on_call: Callable[[str], None],
    kernels: Kernels,
    permissions: Collection[str],
) -> list[Recording]:
    """Run it in these ways; a second time where the pipeline's own code reads what its components return."""
    for largest_real_bytes in REAL_BYTES:
        try:
            return record_runs(
                pipe,
                ways,
                method=method,
                first=first,
                largest_real_bytes=largest_real_bytes,
                on_call=on_call,
                kernels=kernels,
                permissions=permissions,
            )
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


def _weighed(recordings: Sequence[Recording]) -> tuple[Component, ...]:
    recorded = recordings[0].components
    traces = _traces(recordings)
    tiles = {name: [trace.permitted.get("vae_tiling", trace) for trace in traces[name]] for name in recorded}
    return tuple(
        weigh_component(name, component, list(dict.fromkeys((*traces[name], *tiles[name]))))
        for name, component in recorded.items()
    )


def _traces(recordings: Sequence[Recording]) -> dict[str, list[Trace]]:
    """The different traces of each component."""
    traces: dict[str, dict[Trace, None]] = {name: {} for name in recordings[0].components}
    for call in (call for recording in recordings for call in recording.calls):
        traces[call.trace.component][call.trace] = None
    return {name: list(found) for name, found in traces.items()}


def _in_float8(call: FollowedCall) -> list[Component]:
    """The components that can be stored in float8, with these weights: those whose calls were all followed so."""
    recorded, found = call.recordings[0].components, []
    for name, traces in _traces(call.recordings).items():
        stored = [trace.permitted.get("fp8_weights") for trace in traces]
        if stored and (known := [trace for trace in stored if trace is not None]) and len(known) == len(stored):
            found.append(weigh_component(name, replace(recorded[name], weights=known[0].weights), known))
    return found


def _variants(call: FollowedCall, estimator: Estimator, stages: tuple[Stage, ...]) -> Iterator[Variant]:
    """The same call under each set of permissions: VAE tiling if that changes a peak, float8 if a component can be so."""
    stored = _in_float8(call)
    tiled = _stages(call, estimator, permissions=("vae_tiling",))
    saves = tiled is not None and [s.activation_bytes for s in tiled] != [s.activation_bytes for s in stages]
    ways = ["vae_tiling"] * saves + ["fp8_weights"] * bool(stored)
    for permissions in chain.from_iterable(combinations(ways, number + 1) for number in range(len(ways))):
        others = tuple(stored) if "fp8_weights" in permissions else ()
        otherwise = _stages(call, estimator, permissions=permissions, others=others)
        if otherwise is not None:
            yield Variant(permissions=permissions, stages=otherwise, components=others)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from its source tree
        return "not installed"
