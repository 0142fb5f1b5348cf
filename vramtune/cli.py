"""The command line: `vramtune plan`, `vramtune models`, `vramtune gpus`.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
Exit codes: 0 fits, 3 does not fit, 2 wrong usage, 1 the pipeline's call could not be followed.
"""

import contextlib
import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from vramtune import __version__
from vramtune.errors import BudgetError, NoAcceleratorError, UsageError, VramtuneError
from vramtune.units import budget_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vramtune.schema import Comparison, Plan, Profile

NOT_FOLLOWED = 1
WRONG_USAGE = 2
DOES_NOT_FIT = 3

CALL_OPTIONS = {
    "--prompt": ("prompt",),
    "--height": ("height",),
    "--width": ("width",),
    "--frames": ("num_frames",),
    "--steps": ("num_inference_steps",),
    "--batch": ("num_images_per_prompt", "num_videos_per_prompt"),
}
"""Options that become arguments of the pipeline's `__call__`: the first of these names that it takes."""

EXAMPLES = """
Examples:

vramtune plan sdxl --vram-gb 8 --gpu "RTX 4060"

vramtune plan sdxl --vram-gb 8 --gpu 4060 --plot memory.png --save plan.json

vramtune plan wan2.1-14b --vram-gb 12 --gpu 4070 --allow vae_tiling

vramtune plan ./my-pipeline --vram-gb 6 --gpu 3060 --json

vramtune models

vramtune gpus
"""

app = typer.Typer(
    name="vramtune",
    help="Make a diffusers pipeline fit a VRAM budget, as fast as the hardware allows.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line."""
    # what the libraries warn of (a missing image backend, their own next version) says nothing about a plan
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.simplefilter("ignore", FutureWarning)
    app()


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"vramtune {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand before a command."""


# ---------------------------------------------------------------------------------------------------
# plan

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A name of `vramtune models`, a folder written by save_pretrained, or a Hub id."
    ),
]
VramGb = Annotated[str, typer.Option("--vram-gb", metavar="GIB", help="The budget: 8, 11.5, ...")]
Gpu = Annotated[
    str | None,
    typer.Option("--gpu", help='A name of `vramtune gpus`, such as "RTX 4060". Left out: this machine\'s.'),
]
Height = Annotated[int | None, typer.Option("--height", min=1, help="Pixels.")]
Width = Annotated[int | None, typer.Option("--width", min=1, help="Pixels.")]
Frames = Annotated[int | None, typer.Option("--frames", min=1, help="num_frames, for video.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="num_inference_steps.")]
Batch = Annotated[int | None, typer.Option("--batch", min=1, help="Images or videos per prompt.")]
Prompt = Annotated[str | None, typer.Option("--prompt", help="The prompt; its length may matter.")]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", help="Permit what changes the output: vae_tiling. May be given again."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Plot = Annotated[
    Path | None, typer.Option("--plot", help="Draw memory over the call: FILE.png, .svg or .pdf.")
]
Save = Annotated[Path | None, typer.Option("--save", help="Write the plan: FILE.json.")]


@app.command(epilog=EXAMPLES)
def plan(
    model: Model,
    vram_gb: VramGb,
    gpu: Gpu = None,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    steps: Steps = None,
    batch: Batch = None,
    prompt: Prompt = None,
    allow: Allow = None,
    as_json: Json = False,
    plot: Plot = None,
    save: Save = None,
) -> None:
    """Say whether MODEL runs in a VRAM budget, how, how fast, and why. Needs no GPU and no weights.

    Every figure is predicted. Left-out settings are the pipeline's own defaults.

    --json prints {"fits": true, "profile": {}, "plan": {}, "comparison": {}}.
    Where nothing fits, "fits" is false, and "error", "smallest_bytes",
    "permission" and "permitted_bytes" stand in place of "plan".

    Exit codes: 0 fits, 3 does not fit, 2 wrong usage,
    1 the pipeline's call could not be followed.
    """
    settings = {
        "--prompt": prompt,
        "--height": height,
        "--width": width,
        "--frames": frames,
        "--steps": steps,
        "--batch": batch,
    }
    with _exit_codes():
        budget_gb = _budget(vram_gb)
        _check_plot(plot)
        _check_writable(save, option="--save")
        with _progress() as show:
            _check_gpu(gpu, budget_gb, allow or ())
            profile = _profile(model, gpu=gpu, settings=settings, show=show)
            show("Planning")
            answer, comparison = _answer(profile, budget_gb, allow=allow or ())
            _write_files(profile, answer, plot=plot, save=save)
        print_answer = _print_json if as_json else _print_text
        print_answer(profile, answer, comparison)
    if isinstance(answer, BudgetError):
        raise typer.Exit(DOES_NOT_FIT)


def _budget(vram_gb: str) -> float:
    """The number that was typed, refused here if no budget can be that."""
    try:
        number = float(vram_gb)
    except ValueError:
        raise UsageError(f"--vram-gb must be a number of GiB, such as 8 or 11.5; got {vram_gb!r}.") from None
    budget_bytes(number)
    return number


def _profile(
    model: str, *, gpu: str | None, settings: Mapping[str, object], show: Callable[[str], None]
) -> "Profile":
    """Build the pipeline and follow its call."""
    from vramtune import catalog, front

    show(f"Building {model}")
    pipe = catalog.load(model)
    return front.profile(
        pipe,
        call_kwargs=call_kwargs(pipe, settings),
        gpu=gpu,
        progress=False,
        on_call=lambda name: show(f"Tracing {name}"),
    )


def _check_gpu(gpu: str | None, vram_gb: float, allow: Sequence[str]) -> None:
    """Refuse a GPU that is unknown, missing or too small, and unknown permissions, before anything takes time."""
    from vramtune.profiler import device
    from vramtune.tuner import search

    found = device.this_gpu() if gpu is None else device.find_gpu(gpu)
    search.check(found, budget_bytes(vram_gb), allow)


def call_kwargs(pipe: Any, settings: Mapping[str, object]) -> dict[str, object]:
    """The given options under the names that the pipeline's `__call__` has for them."""
    accepted = inspect.signature(pipe.__call__).parameters
    found: dict[str, object] = {}
    for option, value in settings.items():
        if value is not None:
            found[_parameter(option, accepted, pipeline_class=type(pipe).__name__)] = value
    return found


def _parameter(option: str, accepted: Iterable[str], *, pipeline_class: str) -> str:
    names = CALL_OPTIONS[option]
    known = set(accepted)
    for name in names:
        if name in known:
            return name
    possible = [other for other, others in CALL_OPTIONS.items() if known.intersection(others)]
    raise UsageError(
        f"{option}: {pipeline_class} takes no {' or '.join(names)}. It takes {', '.join(possible)}."
    )


def _answer(
    profile: "Profile", vram_gb: float, *, allow: Iterable[str]
) -> tuple["Plan | BudgetError", "Comparison"]:
    """The plan, or why there is none, and the stock modes beside it."""
    from vramtune import front

    permissions = tuple(allow)
    try:
        answer: Plan | BudgetError = front.plan(profile, vram_gb, allow=permissions)
    except BudgetError as error:
        answer = error
    return answer, front.compare(profile, vram_gb, allow=permissions)


def _print_json(profile: "Profile", answer: "Plan | BudgetError", comparison: "Comparison") -> None:
    from vramtune.reports import machine

    if isinstance(answer, BudgetError):
        typer.echo(machine.budget_json(answer, profile, comparison))
    else:
        typer.echo(machine.plan_json(profile, answer, comparison))


def _print_text(profile: "Profile", answer: "Plan | BudgetError", comparison: "Comparison") -> None:
    from vramtune.reports import text

    if isinstance(answer, BudgetError):
        _print(text.budget_report(answer, profile, comparison))
    else:
        _print(text.plan_report(profile, answer, comparison))


# ---------------------------------------------------------------------------------------------------
# models, gpus


@app.command()
def models(as_json: Json = False) -> None:
    """List the pipelines that are known by name."""
    from vramtune import catalog
    from vramtune.reports import machine, text

    if as_json:
        typer.echo(machine.to_text(catalog.models()))
    else:
        _print(text.model_table(catalog.models()))


@app.command()
def gpus(as_json: Json = False) -> None:
    """List the GPUs that are known by name, and the rates that predictions rest on."""
    from vramtune.profiler import device
    from vramtune.reports import machine, text

    if as_json:
        typer.echo(machine.to_text(device.gpus()))
    else:
        _print(text.device_table(device.gpus()))


# ---------------------------------------------------------------------------------------------------
# files, screen, errors


def _check_plot(path: Path | None) -> None:
    """Refuse a plot that could not be written, before anything takes time."""
    if path is None:
        return
    from vramtune.reports.plots import FORMATS

    if path.suffix.lstrip(".").lower() not in FORMATS:
        raise UsageError(f"--plot: {str(path)!r} must end in one of .{', .'.join(FORMATS)}.")
    _check_writable(path, option="--plot")


def _check_writable(path: Path | None, *, option: str) -> None:
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{option}: {str(path)!r} is a folder; name a file.")
    if not path.parent.is_dir():
        raise UsageError(
            f"{option}: {str(path)!r} cannot be written; there is no folder {str(path.parent)!r}."
        )
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{option}: {str(path)!r} cannot be written; permission denied.")


def _write_files(
    profile: "Profile", made: "Plan | BudgetError", *, plot: Path | None, save: Path | None
) -> None:
    if isinstance(made, BudgetError):
        if unwritten := [str(path) for path in (save, plot) if path]:
            typer.echo(f"No plan, so not written: {', '.join(unwritten)}.", err=True)
        return
    if save:
        _write(save, made.save, option="--save")
    if plot:
        from vramtune import front
        from vramtune.reports import plots

        drawn = plots.memory_over_call(front.timeline(profile, made), profile=profile, plan=made)
        _write(plot, lambda path: plots.save_memory(drawn, path), option="--plot")


def _write(path: Path, write: Callable[[Path], None], *, option: str) -> None:
    try:
        write(path)
    except OSError as error:
        raise UsageError(f"{option}: {str(path)!r} cannot be written; {error.strerror}.") from error


def _print(renderable: "RenderableType") -> None:
    """To stdout: as wide as the terminal, or 80 columns of plain text into a pipe."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    console.print(renderable, width=None if console.is_terminal else 80)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A spinner on stderr and what it says now; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("Starting") as status:
        yield lambda doing: status.update(Text(doing))


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    """Errors of our own tree as one line on stderr and an exit code; any other keeps its traceback."""
    try:
        yield
    except (UsageError, NoAcceleratorError) as error:
        _fail(error, code=WRONG_USAGE)
    except VramtuneError as error:
        _fail(error, code=NOT_FOLLOWED)


def _fail(error: VramtuneError, *, code: int) -> NoReturn:
    typer.echo(f"Error: {error}", err=True)
    raise typer.Exit(code)
