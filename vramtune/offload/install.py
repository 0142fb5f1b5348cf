"""The way in: a plan is put to work on a pipeline, or refused with a reason."""

from typing import Any

import torch

from vramtune.contract.refusals import refuse_placed, refuse_tuned, refuse_unknown_weights
from vramtune.errors import UsageError
from vramtune.offload.device import resolve_device
from vramtune.offload.runtime import Runtime
from vramtune.schema import Plan


def install(
    pipe: Any,
    plan: Plan,
    *,
    device: torch.device | str | None = None,
    gpu_id: int | None = None,
    context_bytes: int | None = None,
    cache_embeddings: bool = False,
    progress: bool = False,
) -> Runtime:
    """Install a plan on a pipeline: as a statement, or as a context manager that removes it at its end.

    `device` and `gpu_id` mean what they mean in `enable_model_cpu_offload`. `context_bytes` is what the process holds
    on the device outside PyTorch's allocator, where that is known; `cache_embeddings` keeps what encoders return, `progress`
    shows a bar while memory is page-locked. Raises `UsageError` for a plan that was made for another pipeline and for pipelines
    that something else places, `NoAcceleratorError` where there is no GPU; the pipeline is then as it was.
    """
    resolved = resolve_device(device, gpu_id)
    if type(pipe).__name__ != plan.pipeline_class:
        raise UsageError(
            f"This plan is for a {plan.pipeline_class}; the pipeline is a {type(pipe).__name__}. Make a plan for it."
        )
    if not hasattr(pipe, plan.workload.method):
        raise UsageError(
            f"This plan is for {plan.workload.method!r}, a method that the pipeline lacks. Make a plan for it."
        )
    refuse_tuned(pipe)
    refuse_placed(pipe)
    refuse_unknown_weights(pipe)
    return Runtime(pipe, plan, resolved, context_bytes, cache_embeddings=cache_embeddings, progress=progress)
