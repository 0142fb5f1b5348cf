"""A pipeline's call, followed: its own `__call__` runs, its components on tensors without values."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

from vramtune.contract import CALL, Pipeline, excluded_components, offload_sequence
from vramtune.contract.refusals import expect_pipeline, refuse_layer_offload, refuse_unknown_weights
from vramtune.contract.tracing import call_parameters, missing_package
from vramtune.errors import TraceError, UsageError, VramtuneError
from vramtune.profiler import many_steps
from vramtune.profiler.arguments import NOTHING, arguments_to_trace, calls_to_trace_first, workload_of
from vramtune.profiler.execution import Execution
from vramtune.profiler.inventory import weigh_component
from vramtune.profiler.record import Recording, record_runs
from vramtune.profiler.tapes import WorkList, traced_call, traced_run
from vramtune.schema import ALWAYS_FOLLOWED, Component, Kernels, Trace, TracedCall
from vramtune.units import MIB

REAL_BYTES = (MIB, 64 * MIB)
"""Outputs up to the first are real zeros for the pipeline's own code; where that reads more, those up to the second.

Neither covers a decoded video, which is never materialised."""

PICTURES = ("image", "images", "video", "mask_image", "control_image")
"""Arguments that some pipelines cannot do without, though their calls have a default for them."""


def follow(
    pipe: Pipeline,
    *,
    method: str = CALL,
    call_kwargs: Mapping[str, object],
    first: Mapping[str, Mapping[str, object]] = NOTHING,
    kernels: Kernels = "cuda",
    allow: Collection[str] = (),
    try_steps: Collection[int] = (),
    on_call: Callable[[str], None] | None = None,
) -> Trace:
    """What one call of the pipeline does, without a GPU and without weights, where these kernels run.

    The call is of `method`; `call_kwargs` are its own (a prompt is made up where none is given); the methods in `first`
    are run before it, with their arguments, and only what they leave is counted. The call is also followed under the
    permissions in `allow`, and in any case under those that cost little; and with each number of steps in `try_steps`, to
    see for which it is the same but for its iterations (`Trace.exact_steps`). `on_call` gets the name of each
    component's call when its trace begins. The pipeline is left as it was. Raises `UsageError` for what is not a
    pipeline, for one under layer-wise offload, for weights of unknown kinds, for arguments that a method refuses and for calls
    that run no component; `TraceError` for code that depends on values.
    """
    expect_pipeline(pipe)
    refuse_layer_offload(pipe)
    refuse_unknown_weights(pipe)
    call = _Call(
        pipe=pipe,
        method=method,
        asked=call_kwargs,
        kwargs=arguments_to_trace(pipe, method, call_kwargs),
        first=calls_to_trace_first(pipe, first),
        kernels=kernels,
        permissions=tuple(dict.fromkeys((*ALWAYS_FOLLOWED, *allow))),
        on_call=on_call or (lambda name: None),
    )
    if few := many_steps.steps_to_follow(pipe, call.kwargs):
        drawn = call.trace(call.recorded(few), num_steps=many_steps.asked(call.kwargs))
        fewer, more = drawn.runs
        if many_steps.are_alike(fewer, more, drawn.calls):
            return drawn
    asked = many_steps.asked_or_default(pipe, method, call.kwargs)
    recording, *others = call.recorded(tries=[number for number in try_steps if asked is not None and number != asked])
    trace = call.trace([recording], others)
    return many_steps.with_exact_steps(trace) if others else trace


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """What is followed, and how."""

    pipe: Pipeline
    method: str
    asked: Mapping[str, object]
    """The arguments as they were given."""
    kwargs: dict[str, object]
    """Those with which it runs, a prompt that was made up included."""
    first: Mapping[str, Mapping[str, object]]
    kernels: Kernels
    permissions: tuple[str, ...]
    on_call: Callable[[str], None]

    def recorded(self, steps: Sequence[int] = (), tries: Sequence[int] = ()) -> list[Recording]:
        """Run it with each number of steps, or as it is; a second time where the pipeline's own code reads what its
        components return."""
        ways, others = ([self.kwargs | {many_steps.STEPS: number} for number in each] for each in (steps, tries))
        for largest_real_bytes in REAL_BYTES:
            try:
                return record_runs(
                    self.pipe,
                    ways or [self.kwargs],
                    method=self.method,
                    first=self.first,
                    largest_real_bytes=largest_real_bytes,
                    on_call=self.on_call,
                    kernels=self.kernels,
                    permissions=self.permissions,
                    tries=others,
                )
            except VramtuneError:
                raise
            except Exception as error:
                failure = error
        raise self._refusal(failure) from failure

    def _refusal(self, failure: Exception) -> UsageError | TraceError:
        """What an error of the pipeline's own code means to who asked."""
        pipeline_class, reason = type(self.pipe).__name__, f"{type(failure).__name__}: {failure}"
        if package := missing_package(failure):
            return UsageError(
                f"{pipeline_class} needs the package {package}, which is not installed ({reason}). "
                f"Install it: `pip install {package}`."
            )
        if isinstance(failure, RuntimeError):
            return TraceError(
                f"Cannot predict {pipeline_class}: its own code failed on tensors without values ({reason}). "
                "Pass what it computes there as an argument, or measure on the GPU."
            )
        accepted = call_parameters(self.pipe, self.method)
        pictures = [name for name in PICTURES if name in accepted and name not in self.kwargs]
        advice = (
            f" Of pictures it takes {', '.join(pictures)}: pass what it needs in `call_kwargs`." if pictures else ""
        )
        return UsageError(f"{pipeline_class} refused the call. {reason}{advice}")

    def trace(
        self, recordings: Sequence[Recording], tries: Sequence[Recording] = (), num_steps: int | None = None
    ) -> Trace:
        """What these runs did, and those tries whose components' calls are all among theirs."""
        if not recordings[0].calls:
            raise UsageError(
                f"This call of {type(self.pipe).__name__}.{self.method} runs no component: there is nothing to plan."
            )
        components, in_float8 = _weighed(recordings), _in_float8(recordings)
        numbers, calls, work = _traced_calls(recordings, components, in_float8, self.kernels)
        recordings = [*recordings, *(each for each in tries if all(call.execution in numbers for call in each.calls))]
        steps = [many_steps.asked_or_default(self.pipe, self.method, each.call_kwargs) for each in recordings]
        runs = [
            replace(traced_run(recording, numbers, work), num_steps=number)
            for recording, number in zip(recordings, steps, strict=True)
        ]
        return Trace(
            pipeline_class=type(self.pipe).__name__,
            workload=workload_of(self.method, self.asked),
            kernels=self.kernels,
            components=components,
            in_float8=in_float8,
            permissions=self.permissions,
            offload_sequence=offload_sequence(self.pipe),
            excluded=excluded_components(self.pipe),
            work=tuple(work.numbers),
            calls=calls,
            runs=tuple(runs),
            num_steps=num_steps,
            versions={name: _version(name) for name in ("torch", "diffusers", "transformers", "vramtune")},
        )


def _traced_calls(
    recordings: Sequence[Recording], components: Sequence[Component], in_float8: Sequence[Component], kernels: Kernels
) -> tuple[dict[Execution, int], tuple[TracedCall, ...], WorkList]:
    """Each different call once, those under permissions last; the numbers of the others; all their work."""
    work = WorkList()
    as_they_are, stored = ({component.name: component for component in each} for each in (components, in_float8))
    executions = list(dict.fromkeys(call.execution for recording in recordings for call in recording.calls))
    calls: list[TracedCall] = []
    permitted_calls: list[TracedCall] = []
    for execution in executions:
        permitted = {}
        for permission, other in execution.permitted.items():
            component = (stored if permission == "fp8_weights" else as_they_are).get(execution.component)
            if component is not None:
                permitted[permission] = len(executions) + len(permitted_calls)
                permitted_calls.append(traced_call(other, component, work, {}, kernels))
        calls.append(traced_call(execution, as_they_are[execution.component], work, permitted, kernels))
    return {execution: n for n, execution in enumerate(executions)}, (*calls, *permitted_calls), work


def _weighed(recordings: Sequence[Recording]) -> tuple[Component, ...]:
    recorded = recordings[0].components
    executions = _executions(recordings)
    tiles = {name: [each.permitted.get("vae_tiling", each) for each in executions[name]] for name in recorded}
    return tuple(
        weigh_component(name, component, list(dict.fromkeys((*executions[name], *tiles[name]))))
        for name, component in recorded.items()
    )


def _executions(recordings: Sequence[Recording]) -> dict[str, list[Execution]]:
    """The different calls of each component."""
    executions: dict[str, dict[Execution, None]] = {name: {} for name in recordings[0].components}
    for call in (call for recording in recordings for call in recording.calls):
        executions[call.execution.component][call.execution] = None
    return {name: list(found) for name, found in executions.items()}


def _in_float8(recordings: Sequence[Recording]) -> tuple[Component, ...]:
    """The components that can be stored in float8, with these weights: those whose calls were all followed so."""
    recorded, found = recordings[0].components, []
    for name, executions in _executions(recordings).items():
        stored = [execution.permitted.get("fp8_weights") for execution in executions]
        if stored and (known := [each for each in stored if each is not None]) and len(known) == len(stored):
            found.append(weigh_component(name, replace(recorded[name], weights=known[0].weights), known))
    return tuple(found)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from its source tree
        return "not installed"
