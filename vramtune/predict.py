"""From a pipeline, or a model's name, to the trace of its call, and from that to a profile.

The trace of a catalog model's call, as its card has it, came with the package, and one that was made before is kept: then
neither torch nor diffusers is imported.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vramtune import catalog
from vramtune.catalog import kept
from vramtune.catalog.shipped import shipped_trace
from vramtune.errors import UsageError
from vramtune.extras import expect_pipelines
from vramtune.paths import is_folder, user_path
from vramtune.pricing.price import price
from vramtune.schema import ALWAYS_FOLLOWED, Component, Device, Kernels, Profile, Ranking, Trace

if TYPE_CHECKING:
    from vramtune.contract import Pipeline


FILE_DTYPES = ("float32", "float16", "bfloat16")
"""Of components whose weights are used as they are in their files."""
Arguments = Callable[["Pipeline", Mapping[str, object]], Mapping[str, object]]
"""Makes arguments of a pipeline's `__call__` of what was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCall:
    """A call of a model that is named: of the catalog, in a folder, on the Hub."""

    model: str
    settings: Mapping[str, object] = field(default_factory=dict)
    """What is not the model card's, or the pipeline's own default; by names that `arguments` understands."""
    quantize: Mapping[str, str] = field(default_factory=dict)
    """How which components are quantized."""
    allow: tuple[str, ...] = ()
    kernels: Kernels = "cuda"


def predict_profile(
    pipe: "Pipeline",
    *,
    method: str = "__call__",
    call_kwargs: Mapping[str, object] | None,
    first: Mapping[str, Mapping[str, object]] | None = None,
    device: Device,
    allow: Collection[str] = (),
    on_call: Callable[[str], None] | None = None,
) -> Profile:
    """What one call of a pipeline would cost on a device, without that device and without weights.

    Arguments and errors are those of `profiler.follow.follow`. It is told which of the weights lie in files.
    """
    trace = trace_pipeline(
        pipe, method=method, call_kwargs=call_kwargs, first=first, kernels=device.kernels, allow=allow, on_call=on_call
    )
    from vramtune.profiler.on_disk import with_files

    return with_files(price(trace, device), pipe)


def trace_pipeline(
    pipe: "Pipeline",
    *,
    call_kwargs: Mapping[str, object] | None,
    first: Mapping[str, Mapping[str, object]] | None = None,
    **how: Any,
) -> Trace:
    """`profiler.follow.follow`, with torch and diffusers imported when it is called; `how` are the rest of its arguments."""
    expect_pipelines("To follow a pipeline's call")
    from vramtune.profiler.follow import follow

    return follow(
        pipe, call_kwargs={} if call_kwargs is None else call_kwargs, first={} if first is None else first, **how
    )


def trace_model(call: ModelCall, *, arguments: Arguments, show: Callable[[str], None] = lambda doing: None) -> Trace:
    """The trace of a model's call: one that came with the package, or was kept, or is made now and kept.

    `show` gets what is being done. Raises what `catalog.load` and `profiler.follow.follow` raise.
    """
    trace = _known_or_made(call, arguments, show)
    entry = catalog.find(call.model)
    model = entry.name if entry is not None else call.model
    return replace(trace, workload=replace(trace.workload, model=model, quantize=dict(call.quantize)))


def _known_or_made(call: ModelCall, arguments: Arguments, show: Callable[[str], None]) -> Trace:
    if (known := _shipped(call)) is not None:
        return known
    name = _kept_name(call)
    if name is not None and (trace := kept.kept_trace(name)) is not None:
        return trace
    show(f"Building {call.model}")
    pipe = catalog.load(call.model, quantize=call.quantize)
    asked = {**_card_call(call), **arguments(pipe, call.settings)}
    trace = trace_pipeline(
        pipe, call_kwargs=asked, kernels=call.kernels, allow=call.allow, on_call=lambda doing: show(f"Tracing {doing}")
    )
    if name is not None:
        kept.keep(name, trace)
    return trace


SCHEDULES = ("sigmas", "timesteps")
"""Arguments that say the steps one by one."""


def _card_call(call: ModelCall) -> dict[str, object]:
    """What the model card of a catalog's model calls it with; its schedule not where the number of steps is asked."""
    entry = catalog.find(call.model)
    known = entry.call() if entry is not None else {}
    return {name: value for name, value in known.items() if not (name in SCHEDULES and "steps" in call.settings)}


def price_model(trace: Trace, device: Device, allow: Collection[str] = ()) -> Profile:
    """The price of a model's trace, which may have been followed under more than what is allowed."""
    profile = price(trace, device, permissions=tuple(dict.fromkeys((*ALWAYS_FOLLOWED, *allow))))
    return replace(profile, components=tuple(map(_in_files, profile.components)))


def _in_files(component: Component) -> Component:
    """A component of a model that is not loaded: its weights are in files, but for those that are quantized as they are loaded."""
    if component.dtype not in FILE_DTYPES:
        return component
    groups, finer_groups = (
        tuple(replace(group, file_bytes=group.weight_bytes) for group in groups)
        for groups in (component.groups, component.finer_groups)
    )
    return replace(component, file_bytes=component.weights.allocated_bytes, groups=groups, finer_groups=finer_groups)


def rank(
    trace: Trace,
    devices: Sequence[Device] | None = None,
    *,
    asked_bytes: int | None = None,
    most_seconds: float | None = None,
    allow: tuple[str, ...] = (),
    show: Callable[[str, int, int], None] = lambda doing, done, total: None,
) -> Ranking:
    """The call on each of these GPUs, or on all that are known by name; `show` gets what is planned for, and how many are done."""
    from vramtune.machine.gpus import gpus
    from vramtune.tuner.ranking import rank_gpus

    chosen = gpus() if devices is None else devices

    def profiles() -> Iterator[Profile]:
        for number, device in enumerate(chosen):
            show(f"Planning for {device.name}", number, len(chosen))
            yield price_model(trace, device, allow)

    return rank_gpus(trace, profiles(), asked_bytes=asked_bytes, most_seconds=most_seconds, allow=allow)


STEPS = "num_inference_steps"


def settings_of(call_kwargs: object) -> dict[str, object]:
    """Arguments of a call as a `ModelCall` has them: with `steps`, for which traces of the package stand."""
    if not isinstance(call_kwargs, Mapping) or not all(isinstance(name, str) for name in call_kwargs):
        raise UsageError(f'`call_kwargs` are arguments by name, such as {{"height": 768}}; got {call_kwargs!r}.')
    given: dict[str, object] = dict(call_kwargs)
    names = {STEPS: "steps", "num_frames": "frames"}
    return {names.get(name, name): value for name, value in given.items()}


def as_call_kwargs(pipe: "Pipeline", settings: Mapping[str, object]) -> dict[str, object]:
    """The other way round."""
    names = {"steps": STEPS, "frames": "num_frames"}
    return {names.get(name, name): value for name, value in settings.items()}


def _shipped(call: ModelCall) -> Trace | None:
    """The trace that came with the package, with other steps where it stands for these."""
    entry = catalog.find(call.model)
    steps = call.settings.get("steps")
    if entry is None or call.quantize or call.settings.keys() - {"steps"} or call.kernels != "cuda":
        return None
    trace = shipped_trace(entry.name)
    if trace is None or not {*call.allow} <= {*trace.permissions}:
        return None
    if steps is None:
        return trace
    return trace.with_steps(steps) if isinstance(steps, int) and steps in trace.exact_steps else None


def _kept_name(call: ModelCall) -> str | None:
    """Under what the trace is kept; None for a model that is not at hand (on the Hub), and may change."""
    entry = catalog.find(call.model)
    if entry is None and not is_folder(call.model):
        return None
    folder = None if entry is not None else Path(user_path(call.model)).resolve()
    facts = {
        "settings": dict(call.settings),
        "quantize": dict(call.quantize),
        "allow": call.allow,
        "kernels": call.kernels,
    }
    if not all(isinstance(value, str | int | float | bool | None) for value in call.settings.values()):
        return None  # an image, say
    return kept.name_of(entry.name if entry is not None else "", folder, facts)
