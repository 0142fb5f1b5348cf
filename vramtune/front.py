"""The front door: pipeline to profile, profile and budget to plan, and what else people ask of them.

`profile` needs torch and diffusers, and imports them when it is called; the others work on saved profiles alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vramtune.schema import Comparison, Frontier, Plan, Profile, Timeline
from vramtune.tuner import frontier as tuner_frontier
from vramtune.tuner import search, simulate, strategies
from vramtune.units import budget_bytes


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
    from vramtune.profiler.device import find_gpu, this_gpu
    from vramtune.profiler.shadow import predict_profile

    device = find_gpu(gpu) if gpu is not None else this_gpu()
    kwargs = call_kwargs or {}
    if on_call is not None or not progress:
        return predict_profile(pipe, call_kwargs=kwargs, device=device, on_call=on_call)

    from tqdm.auto import tqdm

    with tqdm(desc="Tracing", unit=" calls", leave=False) as bar:

        def show(name: str) -> None:
            bar.set_description(f"Tracing {name}")
            bar.update()

        return predict_profile(pipe, call_kwargs=kwargs, device=device, on_call=show)


def plan(profile: Profile, vram_gb: float, *, allow: str | Sequence[str] = ()) -> Plan:
    """The fastest plan that keeps everything the process holds on the GPU under `vram_gb` GiB.

    `allow` names permissions to change the output ("vae_tiling"). Raises `UsageError` for a budget that is no
    positive number or exceeds the card, and `BudgetError` if nothing fits.
    """
    return search.choose_plan(profile, budget_bytes(vram_gb), allow=_names(allow))


def compare(profile: Profile, vram_gb: float, *, allow: str | Sequence[str] = ()) -> Comparison:
    """The stock diffusers modes, the plan and the bound under one budget, all predicted."""
    return strategies.compare_modes(profile, budget_bytes(vram_gb), allow=_names(allow))


def frontier(profile: Profile, *, allow: str | Sequence[str] = ()) -> Frontier:
    """Latency against VRAM: plans from the smallest budget that works to where more buys nothing."""
    return tuner_frontier.trace_frontier(profile, allow=_names(allow))


def timeline(profile: Profile, plan: Plan) -> Timeline:
    """A steady call of the plan, copy by copy, and who holds the GPU's memory when."""
    return simulate.timeline(profile, plan)


def _names(allow: str | Sequence[str]) -> tuple[str, ...]:
    return (allow,) if isinstance(allow, str) else tuple(allow)
