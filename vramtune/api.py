"""The front door: pipeline to profile, profile and budget to plan, and what else people ask of them.

`profile` needs torch and diffusers, and imports them when it is called; the others work on saved profiles alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vramtune.errors import UsageError
from vramtune.schema import Comparison, Device, Frontier, Measurement, Plan, Profile, Stage, Timeline
from vramtune.tuner import frontier as tuner_frontier
from vramtune.tuner import search, simulate, stock_modes
from vramtune.units import budget_bytes, format_bytes, format_seconds

if TYPE_CHECKING:
    import torch
    from pandas import DataFrame

    from vramtune.offload.install import Installation

MARGIN_FRACTION = 0.005
"""Of the budget, left free: peaks on the simulated GPU are predicted within 0.3%."""


def profile(
    pipe: Any,
    *,
    call_kwargs: Mapping[str, object] | None = None,
    gpu: str | None = None,
    progress: bool = True,
    on_call: Callable[[str], None] | None = None,
) -> Profile:
    """Predict what one call of a diffusers pipeline costs, without running it and without a GPU.

    `call_kwargs` is what you would pass to the pipeline (`prompt`, `height`, `num_inference_steps`, ...); the
    prompt has a default, the rest is the pipeline's own. `gpu` names a GPU ("RTX 4060", "H100"; `vramtune gpus`
    lists them); left out, it is this machine's. With `progress`, a bar on standard error says what is being
    traced; `on_call` is told instead, if given. The pipeline is left as it was. Raises `UsageError` for arguments
    that the pipeline refuses, `TraceError` for a forward that depends on data, `NoAcceleratorError` where no GPU
    is named and none is there.
    """
    from vramtune.contract import refuse_tuned
    from vramtune.machine.gpus import find_gpu, this_gpu

    refuse_tuned(pipe)
    device = find_gpu(gpu) if gpu is not None else this_gpu()
    return _predicted(pipe, call_kwargs or {}, device, progress=progress, on_call=on_call)


def _predicted(
    pipe: Any,
    kwargs: Mapping[str, object],
    device: Device,
    *,
    progress: bool,
    on_call: Callable[[str], None] | None = None,
) -> Profile:
    from vramtune.profiler.predict import predict_profile

    if on_call is not None or not progress:
        return predict_profile(pipe, call_kwargs=kwargs, device=device, on_call=on_call)

    from tqdm.auto import tqdm

    with tqdm(desc="Tracing", unit=" calls", leave=False) as bar:

        def show(name: str) -> None:
            bar.set_description(f"Tracing {name}")
            bar.update()

        return predict_profile(pipe, call_kwargs=kwargs, device=device, on_call=show)


def autotune(
    pipe: Any,
    vram_gb: float | None = None,
    *,
    call_kwargs: Mapping[str, object] | None = None,
    device: Any = None,
    gpu_id: int | None = None,
    allow: str | Sequence[str] = (),
    progress: bool = True,
) -> "Tuned":
    """Profile a diffusers pipeline, plan for a budget of `vram_gb` GiB, install the plan; say so in one line.

    Left out, the budget is all that this process may have of the GPU. What the card cannot give is taken off and
    said. `call_kwargs` is what you will pass to the pipeline, `device` and `gpu_id` mean what they mean in
    `enable_model_cpu_offload`, `allow` names permissions to change the output ("vae_tiling"). The first call for a
    GPU measures its rates, in about half a second. Raises `NoAcceleratorError` where there is no GPU, `UsageError`
    for bad arguments and for pipelines that something else places, `BudgetError` if nothing fits, `TraceError` if
    the call cannot be followed; the pipeline is then as it was.
    """
    from vramtune.contract import expect_pipeline, refuse_placed, refuse_tuned
    from vramtune.machine.live import live_device, probe
    from vramtune.offload.device import resolve_device

    target = resolve_device(device, gpu_id)
    asked = None if vram_gb is None else budget_bytes(vram_gb)
    expect_pipeline(pipe)
    refuse_tuned(pipe)
    refuse_placed(pipe)
    facts = live_device(target)
    budget = facts.usable_bytes if asked is None else asked
    search.check(facts, budget, _names(allow))
    costs = _predicted(pipe, call_kwargs or {}, facts, progress=progress)
    chosen = search.choose_plan(costs, budget, allow=_names(allow), margin_fraction=MARGIN_FRACTION)
    tuned = Tuned(
        costs, chosen, install(pipe, chosen, device=target, context_bytes=probe(target).context_bytes)
    )
    print(_one_line(costs, chosen, target))
    return tuned


class Tuned:
    """A pipeline under a plan: what was predicted, what was measured, and the way back."""

    def __init__(self, profile: Profile, plan: Plan, installation: "Installation") -> None:
        self.plan = plan
        """The plan that is installed."""
        self._profile, self._installation = profile, installation

    @property
    def profile(self) -> Profile:
        """What the plan was made from; where a stage ran out of memory, its activations are larger by what it took."""
        return _corrected(self._profile, self._installation.overrun_bytes)

    @property
    def measured(self) -> Measurement | None:
        """The last finished call by the device's own counters and events; None before there is one."""
        return self._installation.measured

    def compare(self) -> Comparison:
        """The stock diffusers modes, the plan and the bound under the same budget, all predicted."""
        return stock_modes.compare_plan(self.profile, self.plan)

    def report(self, path: str | Path) -> None:
        """Write one self-contained HTML page: what was predicted, why, and what the last call took."""
        report(self._profile, self.plan, path, measured=self.measured)

    def to_frame(self) -> "DataFrame":
        """One row per stage: what was predicted, and once a call has finished, what was measured beside it."""
        return to_frame(self)

    def remove(self) -> None:
        """Give the pipeline back as it was."""
        self._installation.remove()

    def __repr__(self) -> str:
        from vramtune.reports.terminal import tuned_text

        text = tuned_text(self._profile, self.plan, self.measured)
        return (
            text
            if self._installation.is_installed
            else f"{text.rstrip()}\nRemoved: the pipeline is as it was."
        )


def install(
    pipe: Any,
    plan: Plan,
    *,
    device: Any = None,
    gpu_id: int | None = None,
    context_bytes: int | None = None,
) -> "Installation":
    """Install a plan, made here or loaded with `Plan.load`; `with install(pipe, plan):` removes it at the end.

    `device` and `gpu_id` mean what they mean in `enable_model_cpu_offload`; `context_bytes` is what the process holds
    on the GPU outside PyTorch's allocator, where that is known. Raises `UsageError`, which names what differs, for a
    plan that was made for another pipeline; the pipeline is then as it was.
    """
    from vramtune.offload import install as offload

    _expect(Plan, plan)
    return offload.install(pipe, plan, device=device, gpu_id=gpu_id, context_bytes=context_bytes)


def plan(profile: Profile, vram_gb: float, *, allow: str | Sequence[str] = ()) -> Plan:
    """The fastest plan that keeps everything the process holds on the GPU under `vram_gb` GiB.

    `allow` names permissions to change the output ("vae_tiling"). Raises `UsageError` for a budget that is no
    positive number or exceeds the card, and `BudgetError` if nothing fits.
    """
    _expect(Profile, profile)
    return search.choose_plan(profile, budget_bytes(vram_gb), allow=_names(allow))


def compare(profile: Profile, vram_gb: float, *, allow: str | Sequence[str] = ()) -> Comparison:
    """The stock diffusers modes, the plan and the bound under one budget, all predicted."""
    _expect(Profile, profile)
    return stock_modes.compare_modes(profile, budget_bytes(vram_gb), allow=_names(allow))


def frontier(profile: Profile, *, allow: str | Sequence[str] = ()) -> Frontier:
    """Latency against VRAM: plans from the smallest budget that works to where more buys nothing."""
    _expect(Profile, profile)
    return tuner_frontier.trace_frontier(profile, allow=_names(allow))


def timeline(profile: Profile, plan: Plan) -> Timeline:
    """A steady call of the plan, copy by copy, and who holds the GPU's memory when."""
    _expect(Profile, profile)
    _expect(Plan, plan)
    return simulate.timeline(profile, plan)


def _one_line(profile: Profile, plan: Plan, target: "torch.device") -> str:
    """What `autotune` says."""
    limit = format_bytes(min(plan.asked_bytes, profile.device.usable_bytes))
    if plan.asked_bytes > profile.device.usable_bytes:
        limit += f" usable of {format_bytes(plan.asked_bytes)} asked{_others(target)}"
    found = plan.estimate
    roles = {p.name: [p.role(s) for s, active in enumerate(p.active) if active] for p in plan.placements}
    placed = ", ".join(f"{name} {'/'.join(dict.fromkeys(row))}" for name, row in roles.items())
    return (
        f"vramtune: {limit} on {plan.device_name}; predicted peak {format_bytes(found.peak_bytes)}, "
        f"{format_seconds(found.seconds)} per call (bound {format_seconds(found.bound_seconds)}), "
        f"first call {format_seconds(found.first_call_seconds)}; {placed}."
    )


def _others(target: "torch.device") -> str:
    """Who holds the rest, where the driver tells."""
    from vramtune.machine.live import holders

    others = holders(target)
    if not others:
        return ""
    first = others[0]
    held = "" if first.num_bytes is None else f" {format_bytes(first.num_bytes)}"
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return f" ({first.name or first.pid} holds{held}{more})"


def _corrected(profile: Profile, overrun_bytes: Mapping[str, int]) -> Profile:
    """The profile with stages' activations larger by what out-of-memory errors showed."""

    def larger(stage: Stage) -> Stage:
        more = overrun_bytes.get(stage.name, 0)
        activities = tuple(replace(a, activation_bytes=a.activation_bytes + more) for a in stage.activities)
        return replace(stage, activities=activities) if more else stage

    return replace(profile, stages=tuple(map(larger, profile.stages)))


def report(profile: Profile, plan: Plan, path: str | Path, *, measured: Measurement | None = None) -> None:
    """Write one self-contained HTML page: the verdict, why, the stock modes beside it, the call's timeline, the tables."""
    from vramtune.reports.html import write_report

    _expect(Profile, profile)
    _expect(Plan, plan)
    write_report(
        path,
        profile=profile,
        plan=plan,
        comparison=stock_modes.compare_plan(profile, plan),
        frontier=tuner_frontier.trace_frontier(profile, allow=plan.permissions),
        timeline=simulate.timeline(profile, plan),
        measurement=measured,
    )


def to_frame(noun: Profile | Plan | Comparison | Frontier | Measurement | Tuned) -> "DataFrame":
    """A profile, plan, comparison, frontier, measurement or tuned pipeline as a tidy table, units in its columns' names."""
    from vramtune.reports import frames

    return frames.to_frame(noun)


def _expect(kind: type[Profile] | type[Plan], noun: object) -> None:
    """Refuse what is no such noun: a pipeline, or the name of a file, is easily taken for one."""
    if not isinstance(noun, kind):
        name = kind.__name__
        raise UsageError(
            f"Expected a {name}; got {type(noun).__name__}. `vramtune.{name.lower()}` makes one, "
            f"`vramtune.{name}.load` reads one from a file."
        )


def _names(allow: str | Sequence[str]) -> tuple[str, ...]:
    return (allow,) if isinstance(allow, str) else tuple(allow)
