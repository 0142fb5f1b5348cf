"""Plans for tiny pipelines, and what to compare of a pipeline before and after."""

import functools
import gc
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from tests import tiny_pipelines
from tests.simgpu import load
from tests.simgpu.prediction import RATES, predicted_profile
from vramtune.schema import Plan, Profile
from vramtune.tuner.search import choose_plan

TIGHT_FRACTION = 0.4
"""Of the weights beside the activations: every component that runs long is streamed."""


@functools.cache
def profiled(name: str) -> Profile:
    """The named tiny pipeline's profile; the simulated device keeps the rates it was made for."""
    load().set_rates(**RATES)
    return predicted_profile(name)


@functools.cache
def planned(name: str, fraction: float = TIGHT_FRACTION) -> Plan:
    """The plan for a budget that has room for the activations and so much of the weights."""
    profile = profiled(name)
    peak_bytes = choose_plan(profile, profile.device.usable_bytes).estimate.peak_bytes
    weight_bytes = sum(component.used_bytes for component in profile.components)
    return choose_plan(profile, peak_bytes - int((1 - fraction) * weight_bytes))


def resident_bytes(plan: Plan) -> int:
    """What a plan keeps on the device between calls."""
    return sum(sum(g.weight_bytes for g in p.groups[: min(p.kept)]) for p in plan.placements)


def held_bytes() -> int:
    """What the device holds once nothing of an earlier call or error is left."""
    gc.collect()
    load().synchronize()
    return load().memory_allocated()


def modules(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """The components that hold weights, by name."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def tensors(pipe: DiffusionPipeline) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer, by component and path."""
    for name, module in modules(pipe).items():
        for path, tensor in (*module.named_parameters(), *module.named_buffers()):
            yield f"{name}.{path}", tensor


def values(pipe: DiffusionPipeline) -> dict[str, torch.Tensor]:
    """A copy of every weight on the host."""
    return {path: tensor.detach().cpu().clone() for path, tensor in tensors(pipe)}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether both have the same weights, bit for bit."""
    return one.keys() == other.keys() and all(
        one[path].dtype == other[path].dtype and torch.equal(one[path], other[path]) for path in one
    )


LEFT_BY_CALLS = {
    "_diffusers_hook",
    "_output_capturing_hooks_installed",
    "_conv_idx",
    "_conv_num",
    "_feat_map",
}
LEFT_BY_CALLS |= {"_enc_conv_idx", "_enc_conv_num", "_enc_feat_map"}
"""Attributes that a first call of an untuned pipeline gives its modules."""


def looks(pipe: DiffusionPipeline) -> dict[str, Any]:
    """All that is visible of a pipeline but the values of its weights."""
    return {
        "class": type(pipe),
        # A call leaves private ones behind (`_guidance_scale`), tuned or not.
        "attributes": {
            name: id(value) for name, value in vars(pipe).items() if name[0] != "_" or "offload" in name
        },
        "weights": {
            path: (id(t), t.device, t.dtype, t.shape, t.stride(), t.requires_grad)
            for path, t in tensors(pipe)
        },
        "modules": {
            (name, path): (
                type(module),
                sorted(vars(module).keys() - LEFT_BY_CALLS),
                dict(module._forward_pre_hooks),
            )
            for name, component in modules(pipe).items()
            for path, module in component.named_modules()
        },
    }


def output(pipe: DiffusionPipeline, name: str, **call_kwargs: Any) -> torch.Tensor:
    """One call's result on the host; timesteps, which pipeline and scheduler leave on the device, come with it."""
    try:
        return tiny_pipelines.run(pipe, name, **call_kwargs).cpu()
    finally:
        for owner in (pipe, pipe.scheduler):
            for attribute, value in vars(owner).items():
                if isinstance(value, torch.Tensor):
                    setattr(owner, attribute, value.cpu())
