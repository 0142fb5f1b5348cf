"""MODEL, the budget and the call's settings become a profile and a plan."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vramtune.cli.options import Settings
from vramtune.errors import BudgetError, UsageError
from vramtune.extras import expect_pipelines
from vramtune.paths import is_folder, user_path

if TYPE_CHECKING:
    from vramtune.schema import Comparison, Device, Kernels, Plan, Profile, Trace

ARGUMENTS = {
    "prompt": ("prompt",),
    "height": ("height",),
    "width": ("width",),
    "frames": ("num_frames", "video_length"),
    "steps": ("num_inference_steps",),
    "batch": ("num_images_per_prompt", "num_videos_per_prompt"),
}
"""What a setting is called by the pipeline's `__call__`: the first of these names that it takes."""


def profile_of(
    model: str,
    *,
    gpu: str | None,
    quantize: Mapping[str, str],
    settings: Settings,
    budget_bytes: int | None = None,
    allow: Sequence[str] = (),
    show: Callable[[str], None],
) -> "Profile":
    """What one call costs; `quantize` says how which components are quantized.

    Raises `UsageError` before anything takes time for a budget above the GPU's memory and unknown permissions.
    """

    def check(device: "Device") -> None:
        from vramtune.tuner import search

        search.check(device, device.total_bytes if budget_bytes is None else budget_bytes, allow)

    if is_saved(model):
        given = ["gpu"] * (gpu is not None) + ["quantize"] * bool(quantize) + [*settings]
        return _saved(Path(model), given=given, check=check, show=show)
    device = _checked_device(gpu, check)
    return _predicted(model, device=device, quantize=quantize, settings=settings, allow=allow, show=show)


def is_saved(model: str) -> bool:
    """Whether MODEL names a file, not a pipeline."""
    return model.lower().endswith(".json") and not is_folder(model)


def _saved(
    path: Path, *, given: Sequence[str], check: Callable[["Device"], None], show: Callable[[str], None]
) -> "Profile":
    from vramtune.schema import Profile

    if given:
        raise UsageError(
            f"{', '.join(f'--{name}' for name in given)}: {str(path)!r} is a saved profile; its GPU, its weights and its "
            "call are in it. Leave that out, or name the pipeline."
        )
    show(f"Reading {path}")
    profile = Profile.load(user_path(path))
    check(profile.device)
    return profile


def _checked_device(gpu: str | None, check: Callable[["Device"], None]) -> "Device":
    """The GPU that is named, without torch; else this machine's."""
    if gpu is None:
        expect_pipelines("To measure this machine's GPU", ' Or name a GPU: --gpu "RTX 4060".')
        from vramtune.machine import live

        device = live.this_gpu()
    else:
        from vramtune.machine.gpus import find_gpu

        device = find_gpu(gpu)
    check(device)
    return device


def _predicted(
    model: str,
    *,
    device: "Device",
    quantize: Mapping[str, str],
    settings: Settings,
    allow: Sequence[str],
    show: Callable[[str], None],
) -> "Profile":
    """What its call costs."""
    from vramtune import predict

    trace = trace_of(model, quantize=quantize, settings=settings, allow=allow, kernels=device.kernels, show=show)
    show("Pricing")
    return predict.price_model(trace, device, allow)


def trace_of(
    model: str,
    *,
    quantize: Mapping[str, str],
    settings: Settings,
    allow: Sequence[str],
    kernels: "Kernels" = "cuda",
    show: Callable[[str], None],
) -> "Trace":
    """What a model's call does, which may be known; raises `UsageError` for a saved profile, and unknown permissions."""
    from vramtune import predict
    from vramtune.tuner.search import check_permissions

    if is_saved(model):
        raise UsageError(f"{model!r} is a saved profile, which is of one GPU. Name the pipeline.")
    check_permissions(allow)
    call = predict.ModelCall(model=model, settings=settings, quantize=quantize, allow=tuple(allow), kernels=kernels)
    return predict.trace_model(call, arguments=call_kwargs, show=show)


def call_kwargs(pipe: Any, settings: Mapping[str, object]) -> dict[str, object]:
    """The settings under the names that the pipeline's `__call__` has for them."""
    from vramtune.contract import CALL
    from vramtune.contract.tracing import call_parameters

    accepted = call_parameters(pipe, CALL)
    return {_argument(name, accepted, pipeline_class=type(pipe).__name__): value for name, value in settings.items()}


def _argument(setting: str, accepted: Iterable[str], *, pipeline_class: str) -> str:
    known = set(accepted)
    for name in ARGUMENTS[setting]:
        if name in known:
            return name
    possible = [f"--{other}" for other, names in ARGUMENTS.items() if known.intersection(names)]
    raise UsageError(
        f"--{setting}: {pipeline_class} takes no {' or '.join(ARGUMENTS[setting])}. It takes {', '.join(possible)}."
    )


def with_storage(profile: "Profile", bytes_per_second: float) -> "Profile":
    """The profile on a host that reads its files so fast."""
    device = replace(profile.device, storage_bytes_per_second=bytes_per_second, storage_source="given")
    return replace(profile, device=device)


def plan_or_error(
    profile: "Profile",
    budget_bytes: int,
    allow: Sequence[str],
    *,
    ram_bytes: int | None = None,
    lock_bytes: int | None = None,
) -> "Plan | BudgetError":
    """The fastest plan, or why there is none."""
    from vramtune.tuner import search

    try:
        return search.choose_plan(profile, budget_bytes, ram_bytes=ram_bytes, lock_bytes=lock_bytes, allow=tuple(allow))
    except BudgetError as error:
        return error


def comparison_of(
    profile: "Profile",
    budget_bytes: int,
    plan: "Plan | BudgetError",
    allow: Sequence[str],
    *,
    ram_bytes: int | None = None,
) -> "Comparison":
    """The stock modes beside a plan, or where there is none."""
    from vramtune.tuner import comparison

    if isinstance(plan, BudgetError):
        return comparison.compare_without_plan(profile, budget_bytes, ram_bytes=ram_bytes, allow=tuple(allow))
    return comparison.compare_plan(profile, plan)
