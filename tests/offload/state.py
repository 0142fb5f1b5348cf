"""The state of a pipeline, to compare before and after."""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import DiffusionPipeline

from tests import tiny_pipelines
from vramtune.contract import modules_of


def tensors(pipe: DiffusionPipeline) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer, by component and path."""
    for name, module in modules_of(pipe).items():
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


LEFT_BY_CALLS = {"_diffusers_hook", "_output_capturing_hooks_installed", "_conv_idx", "_conv_num", "_feat_map"}
LEFT_BY_CALLS |= {"_enc_conv_idx", "_enc_conv_num", "_enc_feat_map"}
"""Attributes that a first call of an untuned pipeline gives its modules."""


def state_of(pipe: DiffusionPipeline) -> dict[str, Any]:
    """All that is visible of a pipeline but the values of its weights."""
    return {
        "class": type(pipe),
        # A call leaves private ones behind (`_guidance_scale`), tuned or not.
        "attributes": {name: id(value) for name, value in vars(pipe).items() if name[0] != "_" or "offload" in name},
        "weights": {
            path: (id(t), t.device, t.dtype, t.shape, t.stride(), t.requires_grad) for path, t in tensors(pipe)
        },
        "modules": {
            (name, path): (type(module), sorted(vars(module).keys() - LEFT_BY_CALLS), dict(module._forward_pre_hooks))
            for name, component in modules_of(pipe).items()
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
