"""A family: how its tiny pipeline is built, and what it is called with."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.utils._pytree import tree_map

from benchmarks.classes.outputs import seed_everything

USUAL = {"prompt": "a photo of a cat", "num_inference_steps": 2, "output_type": "pt"}
"""Arguments that every pipeline gets that knows them, unless its family has others."""


@dataclass(frozen=True)
class Family:
    """A subject of the checks."""

    name: str
    build: Callable[[], DiffusionPipeline]
    call: dict[str, Any]
    """Arguments beside the usual ones; a function makes its value anew for each call, None leaves one out."""
    inversion: Callable[[], dict[str, Any]] | None = None
    """Makes the arguments of `invert`, for a pipeline that edits only what it has inverted."""
    runs_on_sim: bool = True
    """Whether the simulated GPU has all operations that it needs; else it is only predicted."""
    runs_offloaded: bool = True
    """Whether diffusers' own model offload runs it; else it is tuned only where everything fits."""

    def pipe(self) -> DiffusionPipeline:
        """A fresh one, on the host, in eval mode; its random weights are the same each time."""
        seed_everything()
        pipe = self.build()
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.eval()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def inputs(self, device: str = "cpu") -> dict[str, Any]:
        """Fresh arguments of a call, tensors on that device."""
        known = inspect.signature(self.pipeline_class.__call__).parameters
        given = {name: value for name, value in USUAL.items() if name in known} | self.call
        made = {name: value() if inspect.isfunction(value) else value for name, value in given.items()}
        made = {name: value for name, value in made.items() if value is not None}
        made["generator"] = torch.Generator("cpu").manual_seed(0)
        return tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, made)

    @property
    def pipeline_class(self) -> type[DiffusionPipeline]:
        """What the builder says it returns."""
        kind: type[DiffusionPipeline] = inspect.signature(self.build).return_annotation
        return kind

    def prepare(self, pipe: Any) -> None:
        """Invert, where the pipeline needs that before each call."""
        if self.inversion is not None:
            pipe.invert(**self.inversion(), generator=torch.Generator("cpu").manual_seed(0))


FAMILIES: dict[str, Family] = {}

Builder = Callable[[], DiffusionPipeline]


def family(
    *,
    inversion: Callable[[], dict[str, Any]] | None = None,
    runs_on_sim: bool = True,
    runs_offloaded: bool = True,
    **call: Any,
) -> Callable[[Builder], Builder]:
    """Register a builder under its name, with the arguments of its call."""

    def register(build: Builder) -> Builder:
        FAMILIES[build.__name__] = Family(build.__name__, build, call, inversion, runs_on_sim, runs_offloaded)
        return build

    return register
