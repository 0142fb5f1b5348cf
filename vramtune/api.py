"""The public functions: pipeline to profile, profile and budget to plan, plan to tuned pipeline.

Those that take a pipeline need torch and diffusers, and import them when called; the others work on saved profiles.
"""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vramtune import predict
from vramtune.errors import UsageError
from vramtune.extras import expect_pipelines
from vramtune.log import show_lines
from vramtune.schema import (
    Comparison,
    Device,
    Frontier,
    Kernels,
    Measurement,
    Plan,
    Profile,
    Timeline,
    Trace,
    checked_path,
)
from vramtune.tuned import Tuned, write_report
from vramtune.tuner import frontier as tuner_frontier
from vramtune.tuner import search, simulate, stock_modes
from vramtune.tuner.budget import MARGIN_FRACTION
from vramtune.units import budget_bytes, format_bytes, ram_bytes

if TYPE_CHECKING:
    import torch

    from vramtune.contract import Pipeline

logger = logging.getLogger(__name__)
show_lines()


def autotune(
    pipe: "Pipeline",
    vram_gb: float | None = None,
    *,
    ram_gb: float | None = None,
    method: str = "__call__",
    call_kwargs: Mapping[str, object] | None = None,
    first: Mapping[str, Mapping[str, object]] | None = None,
    device: "torch.device | str | None" = None,
    gpu_id: int | None = None,
    allow: str | Sequence[str] = (),
    cache_embeddings: bool = False,
    progress: bool = True,
) -> Tuned:
    """Make a pipeline fit a VRAM budget, as fast as it can be: profile it, plan, install the plan.

    The first call for a GPU measures its rates, in about half a second. On an error the pipeline is as it was.

    Args:
        pipe: A diffusers pipeline, standard or modular, with its weights on the host, as `from_pretrained` returns it.
        vram_gb: Budget in GiB for all that the pipeline takes of the GPU, the process's CUDA context included; what
            other models of the process hold is not counted. Left out, it is all that is free. What the card cannot give
            is taken off and said.
        ram_gb: Budget in GiB for what the weights take of the host's memory, page-locked or not. Left out, it is what they
            take already and all that is free but for a GiB; a container's limit counts.
        method: What you will call: the pipeline itself, or a method of it by name ("encode_prompt").
        call_kwargs: Arguments that you will pass to it (`height`, `num_inference_steps`, ...); plan for the
            largest call. The prompt has a default, the rest are the pipeline's own.
        first: Methods that you will have called before, with their arguments: `{"invert": {"image": image}}` for
            LEDITS++, which edits only what it has inverted. What they leave is counted, not what they cost.
        device: As in `enable_model_cpu_offload`.
        gpu_id: As in `enable_model_cpu_offload`.
        allow: Names of permissions to change the output; nothing changes it otherwise. "vae_tiling": the VAE works tile
            by tile. "fp8_weights": denoisers' weights are stored in float8, and `remove()` gives them back as they were,
            for which the host keeps both.
        cache_embeddings: Whether to keep what text and image encoders return, up to 512 MiB on the host, until `remove()`: a
            prompt that comes again does not run them again. Exact: known by all inputs of the encoder's call. Encoders that
            are edited start anew, and those with adapters are not kept; a write into `parameter.data` is not noticed.
        progress: Whether bars and one line on standard error say what is done. It may be interrupted at any time.

    Returns:
        The handle: what was predicted, what calls take, `remove()`. Use the pipeline as before.

    Raises:
        NoAcceleratorError: There is no GPU.
        UsageError: An argument is wrong, or something else places the pipeline.
        BudgetError: Nothing fits the GPU, or what is left over the host; it carries the smallest budget that would.
        TraceError: The call cannot be followed.

    Example:
        >>> tuned = autotune(pipe, vram_gb=8)
        >>> image = pipe("a red fox").images[0]
    """
    expect_pipelines("To tune a pipeline")
    from vramtune.contract import expect_pipeline, refuse_placed, refuse_tuned
    from vramtune.machine.live import measured_gpu
    from vramtune.offload.device import resolve_device
    from vramtune.offload.install import install as install_plan

    target = resolve_device(device, gpu_id)
    asked_bytes, asked_ram_bytes = None if vram_gb is None else budget_bytes(vram_gb), ram_bytes(ram_gb)
    expect_pipeline(pipe)
    refuse_tuned(pipe)
    refuse_placed(pipe)
    gpu = _on_this_host(measured_gpu(target, own_bytes=_held_bytes(pipe)), pipe)
    if asked_bytes is None:
        asked_bytes = gpu.usable_bytes
    search.check(gpu, asked_bytes, permission_names(allow))
    costs = _predicted(pipe, method, call_kwargs, first, gpu, allow=permission_names(allow), progress=progress)
    chosen = search.choose_plan(
        costs, asked_bytes, ram_bytes=asked_ram_bytes, allow=permission_names(allow), margin_fraction=MARGIN_FRACTION
    )
    said = _one_line(chosen, target)  # before installing: nothing may fail between that and the handle
    runtime = install_plan(
        pipe,
        chosen,
        device=target,
        context_bytes=_known_context_bytes(gpu),
        cache_embeddings=cache_embeddings,
        progress=progress,
    )
    runtime.on_measured = partial(_remember_call, target, chosen, gpu.times_predicted)
    logger.log(logging.INFO if progress else logging.DEBUG, "%s", said)
    return Tuned(runtime, costs)


def load(
    pipeline_class: Any,
    source: str | Path,
    vram_gb: float | None = None,
    *,
    ram_gb: float | None = None,
    torch_dtype: "torch.dtype | Mapping[str, torch.dtype] | None" = None,
    variant: str | None = None,
    files: Mapping[str, str | Path] | None = None,
    cast_folder: str | Path | None = None,
    config: str | Path | None = None,
    **options: Any,
) -> tuple[Any, Tuned]:
    """Load a pipeline whose weights stay in their files, and tune it: it may be larger than the host's memory.

    The files are mapped, and read when weights are used; they are never written to, and nothing is downloaded. What is
    copied to the GPU most often is page-locked, as far as `ram_gb` allows.

    Args:
        pipeline_class: Such as `diffusers.FluxPipeline`, or `diffusers.DiffusionPipeline`, which reads the class.
        source: A local folder with safetensors files, one or several for each component; a Hub id whose files are in the
            Hub's cache; or one safetensors file with all components, as `from_single_file` reads it.
        vram_gb: As in `autotune`.
        ram_gb: As in `autotune`; weights that stay in files do not count.
        torch_dtype: As in `from_pretrained`. Left out, each component has the dtype of its files; components of another
            dtype are cast as they are read, into memory.
        variant: As in `from_pretrained`.
        files: Components whose weights are in a safetensors or GGUF file of their own, and not in the folder:
            `{"transformer": "flux1-dev-Q4_K_S.gguf"}`. Of GGUF, `torch_dtype` is what layers compute in, bfloat16 if left out.
        cast_folder: A folder for components that `torch_dtype` casts: each is written there once, as it is cast, and stays in
            files then; later starts find it. Changed files are cast anew, and nothing in it is deleted.
        config: Of a single file, where its configurations are (a folder, or a Hub id in the cache), if diffusers does not know.
        options: What else `autotune` takes.

    Returns:
        The pipeline, and the handle that `autotune` returns.

    Raises:
        FileError: A file of weights is missing, or not whole; or one cannot be written to `cast_folder`.
        UsageError: There is no such source, or it is not a pipeline's; and as `autotune`.
        BudgetError: As `autotune`.

    Example:
        >>> pipe, tuned = vramtune.load(diffusers.FluxPipeline, "flux.1-dev", vram_gb=8, ram_gb=16)
    """
    expect_pipelines("To load a pipeline")
    from vramtune.catalog.weights import load_mapped

    if vram_gb is not None:  # before anything takes time
        budget_bytes(vram_gb)
    ram_bytes(ram_gb)
    pipe = load_mapped(
        pipeline_class,
        source,
        torch_dtype=torch_dtype,
        variant=variant,
        files=files,
        cast_folder=cast_folder,
        config=config,
    )
    return pipe, autotune(pipe, vram_gb, ram_gb=ram_gb, **options)


def profile(
    pipe: "Pipeline",
    *,
    method: str = "__call__",
    call_kwargs: Mapping[str, object] | None = None,
    first: Mapping[str, Mapping[str, object]] | None = None,
    gpu: str | Device | None = None,
    allow: str | Sequence[str] = (),
    progress: bool = True,
) -> Profile:
    """Predict what one call of a pipeline costs, without running it, without a GPU and without weights.

    The pipeline is left as it was.

    Args:
        pipe: A diffusers pipeline, standard or modular; its weights may be missing (`vramtune.catalog.load`).
        method: What you would call: the pipeline itself, or a method of it by name ("encode_prompt").
        call_kwargs: Arguments that you would pass to it (`prompt`, `height`, `num_inference_steps`, ...).
            The prompt has a default, the rest are the pipeline's own.
        first: Methods that you would have called before, with their arguments, as in `autotune`.
        gpu: Name of a GPU ("RTX 4060", "H100"; `vramtune gpus` lists them), or a `Device` of your own figures. Left
            out, it is this machine's, measured.
        allow: Permissions that plans will be allowed: "fp8_weights" has the call followed once more. "vae_tiling" is known
            in any case.
        progress: Whether a bar on standard error says what is traced.

    Returns:
        Weights, activations, seconds and copies of each component, stage by stage.

    Raises:
        UsageError: The pipeline refuses the arguments, or cannot be profiled as it is.
        TraceError: A component's code depends on values.
        NoAcceleratorError: No GPU is named and none is there.

    Example:
        >>> costs = vramtune.profile(pipe, gpu="RTX 4060", call_kwargs={"num_inference_steps": 30})
    """
    expect_pipelines("To profile a pipeline")
    from vramtune.contract import expect_pipeline, refuse_tuned

    expect_pipeline(pipe)
    refuse_tuned(pipe)
    device = _device_of(gpu, pipe)
    search.check(device, device.total_bytes, permission_names(allow))
    return _predicted(pipe, method, call_kwargs, first, device, allow=permission_names(allow), progress=progress)


def trace(
    pipe: "Pipeline",
    *,
    method: str = "__call__",
    call_kwargs: Mapping[str, object] | None = None,
    first: Mapping[str, Mapping[str, object]] | None = None,
    allow: str | Sequence[str] = (),
    progress: bool = True,
) -> Trace:
    """Follow one call of a pipeline and write down what it does, whatever the card: `price` makes a profile of it.

    Args:
        pipe: As in `profile`.
        method: As in `profile`.
        call_kwargs: As in `profile`.
        first: As in `profile`.
        allow: As in `profile`.
        progress: As in `profile`.

    Returns:
        Weights, allocations, and work by kind, arithmetic and traffic, in the order of execution; `save` keeps it in a file.

    Raises:
        UsageError: The pipeline refuses the arguments, or cannot be traced as it is.
        TraceError: A component's code depends on values.

    Example:
        >>> followed = vramtune.trace(pipe)
        >>> costs = [vramtune.price(followed, gpu) for gpu in ("RTX 4060", "RTX 4090")]
    """
    expect_pipelines("To trace a pipeline")
    from vramtune.contract import expect_pipeline, refuse_tuned

    expect_pipeline(pipe)
    refuse_tuned(pipe)
    search.check_permissions(permission_names(allow))
    return _traced(pipe, method, call_kwargs, first, "cuda", allow=permission_names(allow), progress=progress)


def plan(profile: Profile, vram_gb: float, *, ram_gb: float | None = None, allow: str | Sequence[str] = ()) -> Plan:
    """Find the fastest plan that keeps everything the process holds on the GPU within a budget.

    Args:
        profile: What a call costs.
        vram_gb: Budget in GiB.
        ram_gb: Budget in GiB for what the weights take of the host's memory. Left out, it is what was free where the profile
            was made; for a GPU that was named, no limit.
        allow: Names of permissions to change the output ("vae_tiling", "fp8_weights").

    Returns:
        Which weights are on the GPU in each stage, what that is predicted to cost, and why.

    Raises:
        UsageError: The budget is not a positive number or exceeds the card.
        BudgetError: Nothing fits; it carries the smallest budget that would.

    Example:
        >>> vramtune.plan(costs, 8).save("plan.json")
    """
    expect(Profile, profile)
    return search.choose_plan(
        profile, budget_bytes(vram_gb), ram_bytes=ram_bytes(ram_gb), allow=permission_names(allow)
    )


def install(
    pipe: "Pipeline",
    plan: Plan,
    *,
    profile: Profile | None = None,
    device: "torch.device | str | None" = None,
    gpu_id: int | None = None,
    cache_embeddings: bool = False,
    progress: bool = True,
) -> Tuned:
    """Install a plan on a pipeline, until `remove()` or the end of a `with` block.

    On an error the pipeline is as it was.

    Args:
        pipe: A diffusers pipeline with its weights on the host.
        plan: A plan made for this pipeline, here or elsewhere (`Plan.load`).
        profile: What the plan was made from. Needed for the handle's `compare` and `report`.
        device: As in `enable_model_cpu_offload`.
        gpu_id: As in `enable_model_cpu_offload`.
        cache_embeddings: As in `autotune`.
        progress: Whether a bar on standard error says how much is page-locked, where that takes over a second.

    Returns:
        The handle that `autotune` returns too.

    Raises:
        UsageError: The plan was made for another pipeline (the message names what differs), or something else
            places this one.
        NoAcceleratorError: There is no GPU.

    Example:
        >>> with vramtune.install(pipe, vramtune.Plan.load("plan.json")) as tuned:
        ...     pipe("a red fox")
        ...     print(tuned.measured)
    """
    expect_pipelines("To install a plan")
    from vramtune.offload.install import install as install_plan

    expect(Plan, plan)
    context_bytes = None
    if profile is not None:
        expect(Profile, profile)
        context_bytes = _known_context_bytes(profile.device)
    runtime = install_plan(
        pipe,
        plan,
        device=device,
        gpu_id=gpu_id,
        context_bytes=context_bytes,
        cache_embeddings=cache_embeddings,
        progress=progress,
    )
    return Tuned(runtime, profile)


def compare(profile: Profile, vram_gb: float, *, allow: str | Sequence[str] = ()) -> Comparison:
    """Put the stock diffusers modes, the plan and the bound side by side, under one budget, all predicted.

    Args:
        profile: What a call costs.
        vram_gb: Budget in GiB.
        allow: Names of permissions to change the output ("vae_tiling", "fp8_weights").

    Returns:
        Peak, seconds and bytes copied in each mode; its `plan` is None where nothing fits.

    Raises:
        UsageError: The budget is not a positive number or exceeds the card.

    Example:
        >>> vramtune.compare(costs, 8).plot()
    """
    expect(Profile, profile)
    return stock_modes.compare_modes(profile, budget_bytes(vram_gb), allow=permission_names(allow))


def frontier(profile: Profile, *, allow: str | Sequence[str] = ()) -> Frontier:
    """Trace latency against VRAM: plans from the smallest budget that works to where more buys nothing.

    Args:
        profile: What a call costs.
        allow: Names of permissions to change the output ("vae_tiling", "fp8_weights").

    Returns:
        The fastest plan at each budget, and the stock modes at what they need.

    Raises:
        BudgetError: The card is too small for any plan.

    Example:
        >>> vramtune.frontier(costs).to_frame()
    """
    expect(Profile, profile)
    return tuner_frontier.trace_frontier(profile, allow=permission_names(allow))


def timeline(profile: Profile, plan: Plan) -> Timeline:
    """Simulate a steady call of a plan: copy by copy, and who holds the GPU's memory when.

    Args:
        profile: What a call costs.
        plan: A plan made from it.

    Returns:
        When each engine is busy with which weight group, and the memory levels.

    Raises:
        UsageError: The plan was made for other weights or stages.

    Example:
        >>> vramtune.timeline(costs, chosen).plot_memory()
    """
    expect(Profile, profile)
    expect(Plan, plan)
    return simulate.timeline(profile, plan)


def report(profile: Profile, plan: Plan, path: str | Path, *, measured: Measurement | None = None) -> None:
    """Write one self-contained HTML page: the verdict, why, the stock modes, the call's timeline, the tables.

    Args:
        profile: What a call costs.
        plan: A plan made from it.
        path: File to write; it is replaced.
        measured: A measured call to show beside the prediction.

    Raises:
        UsageError: The plan was made for other weights or stages.
        FileError: The file cannot be written.

    Example:
        >>> vramtune.report(costs, chosen, "report.html")
    """
    expect(Profile, profile)
    expect(Plan, plan)
    if measured is not None:
        expect(Measurement, measured)
    checked_path(path)
    write_report(profile, plan, path, measurement=measured)


def _device_of(gpu: str | Device | None, pipe: "Pipeline") -> Device:
    if isinstance(gpu, Device):
        return gpu
    if gpu is None:
        from vramtune.machine.live import this_gpu

        return _on_this_host(this_gpu(own_bytes=_held_bytes(pipe)), pipe)
    from vramtune.machine.gpus import find_gpu

    return find_gpu(gpu)


def _held_bytes(pipe: "Pipeline") -> int:
    """What a pipeline's weights take of the accelerator already, of which a plan will dispose."""
    return sum(tensor.nbytes for tensor in _weights(pipe) if tensor.device.type not in ("cpu", "meta"))


def _on_this_host(gpu: Device, pipe: "Pipeline") -> Device:
    """The device with what of the host's memory a pipeline's weights take already beside what is free, and how fast their
    files are read."""
    from vramtune.machine.storage import storage_rates
    from vramtune.mapped_files import MappedFiles

    mapped, own_bytes, file_bytes = MappedFiles(), 0, Counter[Path]()
    for tensor in _weights(pipe):
        if (file := mapped.file_of(tensor)) is not None:  # what is read of a file counts as free
            file_bytes[file] += tensor.nbytes
        elif tensor.device.type == "cpu":
            own_bytes += tensor.nbytes
    if gpu.ram_bytes is not None:
        gpu = replace(gpu, ram_bytes=gpu.ram_bytes + own_bytes)
    rates = storage_rates(file_bytes.most_common(1)[0][0]) if file_bytes else None
    if rates is None:
        return gpu
    return replace(
        gpu,
        storage_bytes_per_second=rates.storage_bytes_per_second,
        page_cache_bytes_per_second=rates.page_cache_bytes_per_second,
        storage_source="measured",
    )


def _weights(pipe: "Pipeline") -> "set[torch.Tensor]":
    from vramtune.contract import modules_of

    return {tensor for m in modules_of(pipe).values() for tensor in (*m.parameters(), *m.buffers())}


def _predicted(
    pipe: "Pipeline",
    method: str,
    call_kwargs: Mapping[str, object] | None,
    first: Mapping[str, Mapping[str, object]] | None,
    device: Device,
    *,
    allow: tuple[str, ...],
    progress: bool,
) -> Profile:
    followed = _traced(pipe, method, call_kwargs, first, device.kernels, allow=allow, progress=progress)
    return predict.price_pipeline(followed, pipe, device)


def _traced(
    pipe: "Pipeline",
    method: str,
    call_kwargs: Mapping[str, object] | None,
    first: Mapping[str, Mapping[str, object]] | None,
    kernels: Kernels,
    *,
    allow: tuple[str, ...],
    progress: bool,
) -> Trace:
    follow = partial(
        predict.trace_pipeline,
        pipe,
        method=method,
        call_kwargs={} if call_kwargs is None else call_kwargs,
        first={} if first is None else first,
        kernels=kernels,
        allow=allow,
    )
    if not progress:
        return follow()

    from tqdm.auto import tqdm  # which warns in notebooks without widgets

    with tqdm(desc="Tracing", unit=" calls", leave=False) as bar:

        def show(name: str) -> None:
            bar.set_description(f"Tracing {name}")
            bar.update()

        return follow(on_call=show)


def _known_context_bytes(device: Device) -> int | None:
    return device.context_bytes if device.is_context_measured else None


def _one_line(plan: Plan, target: "torch.device") -> str:
    """What `autotune` says: the plan, and where it got less than was asked, who holds the rest."""
    from vramtune.machine.live import holders
    from vramtune.reports.terminal import one_line

    others = holders(target) if plan.asked_bytes > plan.budget_bytes else ()
    if not others:
        return one_line(plan)
    held = "" if others[0].num_bytes is None else f" {format_bytes(others[0].num_bytes)}"
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return f"{one_line(plan)} {others[0].name or others[0].pid} holds{held} of the GPU's memory{more}."


def _remember_call(target: "torch.device", plan: Plan, times_predicted: float, measured: Measurement) -> None:
    """Keep what a call's arithmetic took beside what the rates said; what the plan had of that already is in it."""
    from vramtune.machine.remembered import remember_call

    is_as_planned = [stage.name for stage in measured.stages] == [stage.name for stage in plan.stages]
    if is_as_planned and not measured.num_out_of_memory and plan.estimate.compute_seconds:
        seconds = measured.seconds - sum(stage.exposed_copy_seconds for stage in measured.stages)
        call = f"{plan.pipeline_class}.{plan.workload.method} {plan.workload.call_kwargs}"
        remember_call(target, call, times_predicted * seconds / plan.estimate.compute_seconds)


_MADE_BY = {
    Trace: "`vramtune.trace` makes one, `vramtune.Trace.load` reads one from a file",
    Profile: "`vramtune.profile` makes one, `vramtune.Profile.load` reads one from a file",
    Plan: "`vramtune.plan` makes one, `vramtune.Plan.load` reads one from a file",
    Measurement: "A tuned pipeline's `measured` is one",
}


def expect(kind: type[Trace] | type[Profile] | type[Plan] | type[Measurement], noun: object) -> None:
    """Refuse what is not such a noun: a pipeline, or the name of a file, is easily taken for one."""
    if not isinstance(noun, kind):
        raise UsageError(f"Expected a {kind.__name__}; got {type(noun).__name__}. {_MADE_BY[kind]}.")


def permission_names(allow: object) -> tuple[str, ...]:
    """The permissions, one or several, which `search.check` then knows or does not."""
    names = (allow,) if isinstance(allow, str) else allow
    if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise UsageError(
            f'`allow` takes a permission\'s name, or several: "vae_tiling", ["vae_tiling"]; got {allow!r}.'
        )
    return tuple(names)
