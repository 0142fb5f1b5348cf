"""Arguments and options that several commands share, and the names that a shell completes them with."""

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Annotated, Any

import typer

from vramtune.errors import UsageError
from vramtune.units import budget_bytes, host_bytes


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
    return _starting(incomplete, names) or _starting(incomplete, (name.removeprefix("RTX-") for name in names))


def _permissions(incomplete: str) -> list[str]:
    from vramtune.schema import PERMISSIONS

    return _starting(incomplete, PERMISSIONS)


def _quantized(incomplete: str) -> list[str]:
    from vramtune import catalog

    component, sign, way = incomplete.rpartition("=")
    return [f"{component}={name}" for name in _starting(way, catalog.quantization_names())] if sign else []


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    """Names that begin so, whatever the case, in the case that was typed: shells keep what is there."""
    return [incomplete + name[len(incomplete) :] for name in names if name.lower().startswith(incomplete.lower())]


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
RamGb = Annotated[
    str | None,
    typer.Option(
        "--ram-gb",
        metavar="GIB",
        help="What the weights may take of the host's memory. Left out: what is free here; with --gpu, no limit.",
    ),
]
LockGb = Annotated[
    str | None,
    typer.Option(
        "--lock-gb",
        metavar="GIB",
        help="What of that may be page-locked; the rest is staged. Left out: a share of what is here; with --gpu, no limit.",
    ),
]
StorageRate = Annotated[
    str | None,
    typer.Option(
        "--storage-gb-per-s",
        metavar="GB/S",
        help="How fast weights are read from files that do not fit the host's memory: an NVMe drive 2 to 10. Left out: 3, assumed.",
    ),
]
Gpu = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="NAME",
        autocompletion=_gpus,
        help='A name of `vramtune gpus`, such as "RTX 4060". Left out: this machine\'s.',
    ),
]
Quantize = Annotated[
    list[str] | None,
    typer.Option(
        "--quantize",
        metavar="COMPONENT=HOW",
        autocompletion=_quantized,
        help="As if these were quantized when they are loaded: transformer=nf4,text_encoder_2=int8. How: nf4, fp4, int8, "
        "fp8, torchao-int8, quanto-float8, gguf-q4_k_s, ... May be repeated.",
    ),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="NAME",
        autocompletion=_permissions,
        help="Permit a change of the output: vae_tiling, fp8_weights; several with commas. May be repeated.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


MOST_STORAGE_GB_PER_S = 1e4
"""More is a slip: no memory is as fast."""


def plot_option(what: str) -> Any:
    """The option `--plot` of a command that draws something."""
    return typer.Option("--plot", metavar="FILE", help=f"Draw {what}: FILE.png, .svg or .pdf.")


def budget(vram_gb: str) -> int:
    """Bytes of the number of GiB that was typed; a `UsageError` for what cannot be a budget."""
    return budget_bytes(_number_typed(vram_gb), name="--vram-gb")


def host(gib: str | None, *, name: str) -> int | None:
    """The same of the host's memory, where it was given."""
    return None if gib is None else host_bytes(_number_typed(gib), name=name)


def storage_rate(gigabytes: str | None) -> float | None:
    """Bytes a second of what was typed in GB/s, where it was given; a `UsageError` for what is no rate."""
    if gigabytes is None:
        return None
    rate = _number_typed(gigabytes)
    if not isinstance(rate, float) or not 0 < rate <= MOST_STORAGE_GB_PER_S:
        raise UsageError(f"--storage-gb-per-s takes a number of GB/s above 0, such as 5; got {gigabytes!r}.")
    return rate * 1e9


def _number_typed(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


def time_limit(seconds: float | None) -> float | None:
    """What a call may take; a `UsageError` for what is no time."""
    if seconds is not None and not 0 < seconds < float("inf"):
        raise UsageError(f"--seconds takes a time above 0, such as 60; got {seconds}.")
    return seconds


def permitted(given: Iterable[str] | None) -> tuple[str, ...]:
    """Names of permissions, of what was typed: several options, or one with commas."""
    return tuple(dict.fromkeys(name.strip() for option in given or () for name in option.split(",")))


def quantized(given: Iterable[str] | None) -> dict[str, str]:
    """How which components are quantized, of what was typed: several options, or one with commas."""
    found: dict[str, str] = {}
    for pair in (pair.strip() for option in given or () for pair in option.split(",")):
        component, sign, way = pair.partition("=")
        if not (component and sign and way):
            raise UsageError(f"--quantize takes COMPONENT=HOW, such as transformer=nf4; got {pair!r}.")
        if found.setdefault(component, way) != way:
            raise UsageError(f"--quantize: {component} is given twice, as {found[component]} and {way}.")
    return found


# ---------------------------------------------------------------------------------------------------
# The call's settings


MOST = 2**31 - 1
"""What pipelines and their arrays count with."""


def _number(option: str, metavar: str, meaning: str) -> Any:
    return Annotated[int | None, typer.Option(option, metavar=metavar, min=1, max=MOST, help=meaning)]


SETTINGS: dict[str, Any] = {
    "height": _number("--height", "PIXELS", "Height of the image or video."),
    "width": _number("--width", "PIXELS", "Width of the image or video."),
    "frames": _number("--frames", "N", "Frames of a video (num_frames)."),
    "steps": _number("--steps", "N", "Denoising steps (num_inference_steps)."),
    "batch": _number("--batch", "N", "Images or videos per prompt."),
    "prompt": Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="The prompt; its length may matter.")
    ],
}
"""Options that become arguments of the pipeline's `__call__`; left out, they are those of the model's card, or the pipeline's own
defaults."""


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes `settings` the options of `SETTINGS`; it gets those that were given as one dict."""
    signature = inspect.signature(command)
    if "settings" not in signature.parameters:
        return command

    @wraps(command)
    def run(**given: Any) -> None:
        values = {name: given.pop(name) for name in SETTINGS}
        command(**given, settings={name: value for name, value in values.items() if value is not None})

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
