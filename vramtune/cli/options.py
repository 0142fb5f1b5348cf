"""Arguments and options that several commands share, and the names that a shell completes them with."""

import inspect
import math
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Annotated, Any

import typer

from vramtune.errors import UsageError


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


# ---------------------------------------------------------------------------------------------------
# Completion: known names, from modules without torch


def _models(incomplete: str) -> list[str]:
    from vramtune import catalog

    return _starting(incomplete, catalog.names())


def _gpus(incomplete: str) -> list[str]:
    from vramtune.machine.gpus import gpu_names

    # without spaces, which a shell would have to quote; `find_gpu` minds neither them nor the brand
    names = [name.replace(" ", "-") for name in gpu_names()]
    return _starting(incomplete, names) or _starting(
        incomplete, (name.removeprefix("RTX-") for name in names)
    )


def _permissions(incomplete: str) -> list[str]:
    from vramtune.schema import PERMISSIONS

    return _starting(incomplete, PERMISSIONS)


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    """Names that begin so, whatever the case, in the case that was typed: shells keep what is there."""
    return [
        incomplete + name[len(incomplete) :] for name in names if name.lower().startswith(incomplete.lower())
    ]


# ---------------------------------------------------------------------------------------------------
# Arguments and options

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        autocompletion=_models,
        help="A name of `vramtune models`, a folder written by save_pretrained, a Hub id, or a profile "
        "saved by `vramtune profile` (FILE.json).",
    ),
]
VramGb = Annotated[str, typer.Option("--vram-gb", metavar="GIB", help="The budget: 8, 11.5, ...")]
Gpu = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="NAME",
        autocompletion=_gpus,
        help='A name of `vramtune gpus`, such as "RTX 4060". Left out: this machine\'s.',
    ),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="NAME",
        autocompletion=_permissions,
        help="Permit what changes the output: vae_tiling. May be given again.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def plot_option(what: str) -> Any:
    """The option `--plot` of a command that draws something."""
    return typer.Option("--plot", metavar="FILE", help=f"Draw {what}: FILE.png, .svg or .pdf.")


def budget(vram_gb: str) -> float:
    """The number that was typed, refused here if no budget can be that."""
    try:
        number = float(vram_gb)
    except ValueError:
        raise UsageError(f"--vram-gb must be a number of GiB, such as 8 or 11.5; got {vram_gb!r}.") from None
    if not 0 < number < math.inf:
        raise UsageError(f"--vram-gb must be a finite number above 0 (GiB of GPU memory); got {vram_gb!r}.")
    return number


# ---------------------------------------------------------------------------------------------------
# The call's settings


def _number(option: str, metavar: str, meaning: str) -> Any:
    return Annotated[int | None, typer.Option(option, metavar=metavar, min=1, help=meaning)]


SETTINGS: dict[str, Any] = {
    "height": _number("--height", "PIXELS", "Of the image or the video."),
    "width": _number("--width", "PIXELS", "Of the image or the video."),
    "frames": _number("--frames", "N", "num_frames, for video."),
    "steps": _number("--steps", "N", "num_inference_steps."),
    "batch": _number("--batch", "N", "Images or videos per prompt."),
    "prompt": Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="The prompt; its length may matter.")
    ],
}
"""Options that become arguments of the pipeline's `__call__`; left out, they are the pipeline's own defaults."""


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `SETTINGS`; it gets those that were given as one dict, `settings`."""

    @wraps(command)
    def run(**given: Any) -> None:
        found = {name: given.pop(name) for name in SETTINGS}
        command(**given, settings={name: value for name, value in found.items() if value is not None})

    signature = inspect.signature(command)
    own = [parameter for name, parameter in signature.parameters.items() if name != "settings"]
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=option, default=None)
        for name, option in SETTINGS.items()
    ]
    keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    run.__signature__ = signature.replace(parameters=[*keyword, *more])  # type: ignore[attr-defined]
    return run


Settings = dict[str, object]
"""Call settings that were given, by name."""
