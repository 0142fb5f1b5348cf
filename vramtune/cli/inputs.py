"""MODEL and the call's settings become a profile: predicted now, or read from a file."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vramtune.cli.options import Settings
from vramtune.errors import UsageError

if TYPE_CHECKING:
    from vramtune.schema import Device, Profile

ARGUMENTS = {
    "prompt": ("prompt",),
    "height": ("height",),
    "width": ("width",),
    "frames": ("num_frames",),
    "steps": ("num_inference_steps",),
    "batch": ("num_images_per_prompt", "num_videos_per_prompt"),
}
"""What a setting is called by the pipeline's `__call__`: the first of these names that it takes."""

Check = Callable[["Device"], None]


def profile_of(
    model: str, *, gpu: str | None, settings: Settings, check: Check, show: Callable[[str], None]
) -> "Profile":
    """What one call costs. `check` may refuse the GPU before anything takes time."""
    if is_saved(model):
        return _saved(Path(model), given=["gpu"] * (gpu is not None) + [*settings], check=check, show=show)
    from vramtune.machine import gpus

    check(gpus.this_gpu() if gpu is None else gpus.find_gpu(gpu))
    return _predicted(model, gpu=gpu, settings=settings, show=show)


def is_saved(model: str) -> bool:
    """Whether MODEL names a file, not a pipeline."""
    path = Path(model).expanduser()
    return path.suffix.lower() == ".json" and not path.is_dir()


def _saved(path: Path, *, given: Sequence[str], check: Check, show: Callable[[str], None]) -> "Profile":
    from vramtune.schema import Profile

    if given:
        raise UsageError(
            f"{', '.join(f'--{name}' for name in given)}: {str(path)!r} is a saved profile; its GPU and its call are "
            "in it. Leave that out, or name the pipeline."
        )
    show(f"Reading {path}")
    profile = Profile.load(path.expanduser())
    check(profile.device)
    return profile


def _predicted(model: str, *, gpu: str | None, settings: Settings, show: Callable[[str], None]) -> "Profile":
    """Build the pipeline and follow its call."""
    from vramtune import api, catalog

    show(f"Building {model}")
    pipe = catalog.load(model)
    return api.profile(
        pipe,
        call_kwargs=call_kwargs(pipe, settings),
        gpu=gpu,
        progress=False,
        on_call=lambda name: show(f"Tracing {name}"),
    )


def call_kwargs(pipe: Any, settings: Mapping[str, object]) -> dict[str, object]:
    """The settings under the names that the pipeline's `__call__` has for them."""
    accepted = inspect.signature(pipe.__call__).parameters
    return {
        _argument(name, accepted, pipeline_class=type(pipe).__name__): value
        for name, value in settings.items()
    }


def _argument(setting: str, accepted: Iterable[str], *, pipeline_class: str) -> str:
    known = set(accepted)
    for name in ARGUMENTS[setting]:
        if name in known:
            return name
    possible = [f"--{other}" for other, names in ARGUMENTS.items() if known.intersection(names)]
    raise UsageError(
        f"--{setting}: {pipeline_class} takes no {' or '.join(ARGUMENTS[setting])}. "
        f"It takes {', '.join(possible)}."
    )
