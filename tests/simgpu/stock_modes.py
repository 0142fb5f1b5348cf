"""diffusers' own ways to place a pipeline, on the simulated accelerator, and one measured call."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline

from tests import tiny_pipelines
from tests.simgpu import load
from tests.simgpu.torch_sim import Counters


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCall:
    """One call as the simulated accelerator counted it."""

    output: torch.Tensor
    seconds: float
    peak_bytes: int
    counters: Counters


def call(pipe: DiffusionPipeline, name: str) -> MeasuredCall:
    """One call of two steps, from an idle device until it is idle again."""
    sim = load()
    sim.reset()
    output = tiny_pipelines.run(pipe, name).cpu()
    sim.synchronize()
    return MeasuredCall(
        output=output, seconds=sim.virtual_seconds(), peak_bytes=sim.max_memory_allocated(), counters=sim.counters()
    )


@functools.cache
def on_cpu(name: str) -> torch.Tensor:
    """What the named tiny pipeline gives on the CPU."""
    return tiny_pipelines.run(tiny_pipelines.build(name), name)


def group_offload(offload_type: str, **options: object) -> Callable[[DiffusionPipeline], None]:
    """diffusers' group offloading with one block per group."""

    def enable(pipe: DiffusionPipeline) -> None:
        is_block = offload_type == "block_level"
        # LTX's VAE is one group whose hook sits on `forward`, while the pipeline calls `decode`: its weights would
        # stay on the CPU (so on a GPU too). Excluded modules are resident.
        exclude = ["vae"] if is_block and type(pipe).__name__ == "LTXPipeline" else []
        pipe.enable_group_offload(
            onload_device=torch.device("sim"),
            offload_type=offload_type,
            num_blocks_per_group=1 if is_block else None,
            exclude_modules=exclude,
            **options,
        )

    return enable


MODES: dict[str, Callable[[DiffusionPipeline], object]] = {
    "resident": lambda pipe: pipe.to("sim"),
    "model offload": lambda pipe: pipe.enable_model_cpu_offload(device="sim"),
    "sequential offload": lambda pipe: pipe.enable_sequential_cpu_offload(device="sim"),
    "group, block": group_offload("block_level"),
    "group, block, stream": group_offload("block_level", use_stream=True),
    "group, leaf": group_offload("leaf_level"),
    "group, leaf, stream": group_offload("leaf_level", use_stream=True),
    "group, leaf, stream, recorded": group_offload("leaf_level", use_stream=True, record_stream=True),
}
