"""The public functions for who has a pipeline: tune it, or predict what its call costs.

They need torch and diffusers, and import them when called.
"""

import inspect
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vramtune import predict
from vramtune.api.arguments import expect, permission_names
from vramtune.api.device import measured_device, planned_device
from vramtune.api.progress import tracing_bar
from vramtune.errors import UnknownNameError
from vramtune.extras import expect_pipelines
from vramtune.schema import Device, Plan, Profile, Trace
from vramtune.tuned import Tuned
from vramtune.tuner import search
from vramtune.tuner.budget import MARGIN_FRACTION
from vramtune.units import budget_bytes, format_bytes, host_bytes

if TYPE_CHECKING:
    import torch

    from vramtune.contract import Pipeline

logger = logging.getLogger(__name__)


def autotune(
    pipe: "Pipeline",
    vram_gb: float | None = None,
    *,
    ram_gb: float | None = None,
    lock_gb: float | None = None,
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
            take already and all that is free but for a GiB; a container's limit counts. Outputs, libraries and kept embeddings
            are beside it.
        lock_gb: Budget in GiB for what of that is page-locked, so that the GPU copies it by itself and the system cannot use it
            otherwise. Left out, what moves, up to 80% of the host's memory (50% on Windows). The rest is staged, which
            takes longer only where the host copies more slowly than the link.
        method: What you will call: the pipeline itself, or a method of it by name ("encode_prompt").
        call_kwargs: Arguments that you will pass to it (`height`, `num_inference_steps`, ...); plan for the
            largest call. The prompt has a default, the rest are the pipeline's own. Callbacks among them are called
            while the call is followed, with tensors that have no values.
        first: Methods that you will have called before, with their arguments: `{"invert": {"image": image}}` for
            LEDITS++, which edits only what it has inverted. What they leave is counted, not what they cost.
        device: As in `enable_model_cpu_offload`.
        gpu_id: As in `enable_model_cpu_offload`.
        allow: Names of permissions to change the output; nothing changes it otherwise. "vae_tiling": the VAE works tile
            by tile. "fp8_weights": denoisers' weights are stored in float8, and `remove()` gives them back as they were,
            for which the host keeps both.
        cache_embeddings: Whether to keep what text and image encoders return, up to 512 MiB on the host beside `ram_gb`, until
            `remove()`: a prompt that comes again does not run them again. Exact: known by all inputs of the encoder's call.
            Encoders that are edited start anew, and those with adapters are not kept; a write into `parameter.data`, as
            PEFT's `merge()` does (and `fuse_lora` does not), is not noticed.
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
    from vramtune.contract.refusals import expect_pipeline, refuse_placed, refuse_tuned
    from vramtune.machine.remembered import remember_measurement
    from vramtune.offload.device import resolve_device
    from vramtune.offload.install import install as install_plan

    target = resolve_device(device, gpu_id)
    asked_bytes = None if vram_gb is None else budget_bytes(vram_gb)
    ram_bytes, lock_bytes = host_bytes(ram_gb, name="ram_gb"), host_bytes(lock_gb, name="lock_gb")
    permissions = permission_names(allow)
    expect_pipeline(pipe)
    refuse_tuned(pipe)
    refuse_placed(pipe)
    gpu = measured_device(pipe, target)
    if asked_bytes is None:
        asked_bytes = gpu.usable_bytes
    search.check(gpu, asked_bytes, permissions)
    with tracing_bar(is_shown=progress) as on_call:
        costs = predict.predict_profile(
            pipe, method=method, call_kwargs=call_kwargs, first=first, device=gpu, allow=permissions, on_call=on_call
        )
    chosen = search.choose_plan(
        costs,
        asked_bytes,
        ram_bytes=ram_bytes,
        lock_bytes=lock_bytes,
        allow=permissions,
        margin_fraction=MARGIN_FRACTION,
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
    runtime.on_measured = partial(remember_measurement, target, chosen, gpu.times_predicted)
    logger.log(logging.INFO if progress else logging.DEBUG, "%s", said)
    return Tuned(runtime, costs)


def load(
    pipeline_class: Any,
    source: str | Path,
    vram_gb: float | None = None,
    *,
    ram_gb: float | None = None,
    lock_gb: float | None = None,
    torch_dtype: "torch.dtype | Mapping[str, torch.dtype] | None" = None,
    variant: str | None = None,
    files: Mapping[str, str | Path] | None = None,
    cast_folder: str | Path | None = None,
    config: str | Path | None = None,
    **options: Any,
) -> tuple[Any, Tuned]:
    """Load a pipeline whose weights stay in their files, and tune it: it may be larger than the host's memory.

    The files are mapped, and read when weights are used; they are never written to, and nothing is downloaded. What is
    copied to the GPU most often is page-locked, as far as `ram_gb` and `lock_gb` allow.

    Args:
        pipeline_class: Such as `diffusers.FluxPipeline`, or `diffusers.DiffusionPipeline`, which reads the class.
        source: A local folder with safetensors files, one or several for each component; a Hub id whose files are in the
            Hub's cache; or one safetensors file with all components, as `from_single_file` reads it.
        vram_gb: As in `autotune`.
        ram_gb: As in `autotune`; weights that stay in files do not count.
        lock_gb: As in `autotune`.
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
    host_bytes(ram_gb, name="ram_gb")
    host_bytes(lock_gb, name="lock_gb")
    _check_options(options)
    pipe = load_mapped(
        pipeline_class,
        source,
        torch_dtype=torch_dtype,
        variant=variant,
        files=files,
        cast_folder=cast_folder,
        config=config,
    )
    return pipe, autotune(pipe, vram_gb, ram_gb=ram_gb, lock_gb=lock_gb, **options)


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
    from vramtune.contract.refusals import expect_pipeline, refuse_tuned

    expect_pipeline(pipe)
    refuse_tuned(pipe)
    permissions, device = permission_names(allow), planned_device(pipe, gpu)
    search.check(device, device.total_bytes, permissions)
    with tracing_bar(is_shown=progress) as on_call:
        return predict.predict_profile(
            pipe, method=method, call_kwargs=call_kwargs, first=first, device=device, allow=permissions, on_call=on_call
        )


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
    from vramtune.contract.refusals import expect_pipeline, refuse_tuned

    expect_pipeline(pipe)
    refuse_tuned(pipe)
    permissions = permission_names(allow)
    search.check_permissions(permissions)
    with tracing_bar(is_shown=progress) as on_call:
        return predict.trace_pipeline(
            pipe, method=method, call_kwargs=call_kwargs, first=first, allow=permissions, on_call=on_call
        )


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse what `autotune` would refuse of the options of `load`, before weights are loaded."""
    from vramtune.offload.device import resolve_device

    known = inspect.signature(autotune).parameters.keys() - {"pipe"}
    for name in options.keys() - known:
        raise UnknownNameError(
            "argument of load", name, sorted(known | inspect.signature(load).parameters.keys() - {"options"})
        )
    search.check_permissions(permission_names(options.get("allow", ())))
    resolve_device(options.get("device"), options.get("gpu_id"))


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
