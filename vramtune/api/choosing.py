"""The public functions for who has no pipeline yet: what a call costs on a card, which card, all of them at once.

Of the catalog's models they need neither torch nor diffusers.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from vramtune import predict
from vramtune.api.arguments import expect, permission_names
from vramtune.api.progress import counting_bar
from vramtune.errors import UsageError
from vramtune.pricing.price import price as price_trace
from vramtune.schema import Device, Profile, Ranking, Trace, checked_path
from vramtune.tuner import search
from vramtune.units import budget_bytes


def price(trace: Trace, gpu: str | Device) -> Profile:
    """What a traced call costs on a GPU; needs neither torch nor the pipeline.

    Args:
        trace: What the call does.
        gpu: A name of `vramtune gpus`, or a `Device` of your own figures.

    Returns:
        What `profile` would for that GPU.

    Raises:
        UsageError: Nothing is known of a GPU of that name, or it runs other kernels than those that were followed.

    Example:
        >>> vramtune.price(vramtune.Trace.load("flux.trace"), "RTX 4070")
    """
    expect(Trace, trace)
    return price_trace(trace, _listed(gpu))


def which(
    model: "str | Trace",
    *,
    seconds: float | None = None,
    vram_gb: float | None = None,
    call_kwargs: Mapping[str, object] | None = None,
    quantize: Mapping[str, str] | None = None,
    allow: str | Sequence[str] = (),
    gpus: Sequence[str | Device] | None = None,
    progress: bool = True,
) -> Ranking:
    """Say which GPUs run a call, how and how fast, and what less memory would cost there. All predicted.

    Args:
        model: A name of `vramtune models`, a folder, a Hub id, or a `Trace`, whose call and weights are in it.
        seconds: What a call may take. Left out: any time.
        vram_gb: Budget in GiB on each GPU. Left out: all that it gives.
        call_kwargs: As in `profile`.
        quantize: As if components were quantized when they are loaded: `{"transformer": "nf4"}`.
        allow: Names of permissions to change the output ("vae_tiling", "fp8_weights").
        gpus: Names or `Device`s. Left out: all that are known by name.
        progress: Whether bars on standard error say what is done.

    Returns:
        The GPUs: those that do it in time, the fastest first, then those that take longer, then those that it does not fit.

    Raises:
        UsageError: An argument is wrong.
        TraceError: The call cannot be followed.

    Example:
        >>> vramtune.which("flux.1-dev", seconds=60).to_frame()
    """
    names = permission_names(allow)
    search.check_permissions(names)
    asked_bytes = None if vram_gb is None else budget_bytes(vram_gb)
    devices = None if gpus is None else _all_listed(gpus)
    most_seconds = _time_limit(seconds)
    if isinstance(model, Trace) and (call_kwargs or quantize):
        raise UsageError("A Trace has its call and its weights in it: leave `call_kwargs` and `quantize` out.")
    with counting_bar("GPUs", is_shown=progress) as show:
        if isinstance(model, Trace):
            followed = model
        else:
            settings, ways = predict.settings_of(call_kwargs or {}), _ways(quantize or {})
            call = predict.ModelCall(model=model, settings=settings, quantize=ways, allow=names)
            followed = predict.trace_model(
                call, arguments=predict.as_call_kwargs, show=lambda doing: show(doing, 0, len(devices or ()))
            )
        return predict.rank(
            followed, devices, asked_bytes=asked_bytes, most_seconds=most_seconds, allow=names, show=show
        )


def sweep(
    models: str | Sequence[str],
    path: str | Path,
    *,
    vram_gb: float | Sequence[float],
    gpus: Sequence[str | Device] | None = None,
    call_kwargs: Sequence[Mapping[str, object]] = ({},),
    quantizations: Sequence[Mapping[str, str]] = ({},),
    allow: str | Sequence[str] = (),
    jobs: int | None = None,
    progress: bool = True,
) -> int:
    """Plan models x calls x quantizations x GPUs x budgets, one row each, to a CSV or Parquet file. All predicted.

    It runs through joblib, so `joblib.parallel_config("dask")` around it takes it to a Dask cluster. What is done is kept
    in a folder beside the file until all of it is: who calls again after a crash goes on there.

    Args:
        models: Names of `vramtune models`, folders, Hub ids; one, or several.
        path: What to write: it ends in .csv or .parquet.
        vram_gb: Budgets in GiB; one, or several.
        gpus: Names or `Device`s. Left out: all that are known by name.
        call_kwargs: Calls of each model: `height`, `width`, `num_frames` and `num_inference_steps` are columns.
        quantizations: Ways in which components are quantized; `{}` is as they are.
        allow: Names of permissions to change the output.
        jobs: Processes. Left out: as joblib is configured.
        progress: Whether a bar on standard error says what is done.

    Returns:
        The number of rows.

    Raises:
        UsageError: An argument is wrong, or Parquet's library is not installed.
        FileError: The file cannot be written.

    Example:
        >>> vramtune.sweep(["sdxl", "flux.1-dev"], "sweep.csv", vram_gb=[6, 8, 12], jobs=2)
    """
    from vramtune.machine.gpus import gpus as listed
    from vramtune.sweeps import sweep as run

    names = permission_names(allow)
    search.check_permissions(names)
    budgets = [vram_gb] if isinstance(vram_gb, str | int | float) else vram_gb
    with counting_bar("traces", is_shown=progress) as show:
        rows = run(
            [models] if isinstance(models, str) else models,
            budgets=[budget_bytes(each) for each in budgets],
            devices=listed() if gpus is None else _all_listed(gpus),
            settings=[predict.settings_of(each) for each in call_kwargs],
            quantizations=list(map(_ways, quantizations)),
            allow=names,
            path=checked_path(path),
            arguments=predict.as_call_kwargs,
            jobs=jobs,
            show=show,
        )
    return len(rows)


def explore(sweep: str | Path, folder: str | Path) -> Path:
    """Write one HTML page on which people choose model, GPU, budget and quantization, over a sweep. All predicted.

    The page needs no server and fetches nothing; the sweep's file is put beside it.

    Args:
        sweep: A file that `sweep` wrote.
        folder: Where to; it is made where there is none.

    Returns:
        The page: `index.html` in the folder.

    Raises:
        FileError: The file is no sweep, or the page cannot be written.

    Example:
        >>> vramtune.explore("sweep.csv", "site")
    """
    from vramtune.sweeps import explore as write

    return write(sweep, folder)


def _time_limit(seconds: object) -> float | None:
    """What a call may take; a `UsageError` for what is no time."""
    if seconds is None or (isinstance(seconds, int | float) and 0 < seconds < float("inf")):
        return seconds
    raise UsageError(f"`seconds` is a time above 0, such as 60; got {seconds!r}.")


def _all_listed(gpus: object) -> list[Device]:
    """The GPUs, one or several; a `UsageError` for what are none."""
    several = [gpus] if isinstance(gpus, str | Device) else gpus
    if not isinstance(several, Collection) or not several:
        raise UsageError(f'`gpus` takes names of GPUs, or `Device`s: ["RTX 4060"]; got {gpus!r}.')
    return [_listed(gpu) for gpu in several]


def _ways(quantize: object) -> Mapping[str, str]:
    """How components are quantized; a `UsageError` for what does not say it by name."""
    if not isinstance(quantize, Mapping) or not all(
        isinstance(word, str) for pair in quantize.items() for word in pair
    ):
        raise UsageError(f'A quantization names components: {{"transformer": "nf4"}}; got {quantize!r}.')
    return quantize


def _listed(gpu: str | Device) -> Device:
    from vramtune.machine.gpus import find_gpu

    return gpu if isinstance(gpu, Device) else find_gpu(gpu)
