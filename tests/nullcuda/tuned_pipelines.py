"""Pipelines under a plan on the null card, and the same ones whole on it."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from tests import tiny_pipelines
from tests.nullcuda.card import counters, reset
from vramtune.errors import BudgetError
from vramtune.machine.live import live_device
from vramtune.predict import predict_profile
from vramtune.schema import Plan, Profile
from vramtune.tuner.budget import MARGIN_FRACTION
from vramtune.tuner.search import choose_plan

NAMES = (*tiny_pipelines.CALL, "larger flux")
WIDTH = 2901
"""Of matrices of 32.1 MiB: each by itself would take 34 of the driver."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """One call as the card counted it."""

    output: torch.Tensor
    to_card_bytes: int
    from_card_bytes: int
    pageable_bytes: int
    peak_bytes: int
    """Of the process, by NVML's reckoning: the context too, in the driver's granules."""


def build(name: str) -> DiffusionPipeline:
    """The named pipeline, the same each time."""
    return tiny_pipelines.larger_flux() if name == "larger flux" else tiny_pipelines.build(name)


def run(pipe: Any, name: str, **call_kwargs: Any) -> torch.Tensor:
    """One call of two steps; the output is on the host."""
    return tiny_pipelines.run(pipe, "flux" if name == "larger flux" else name, **call_kwargs).cpu()


def counted(pipe: Any, name: str, **call_kwargs: Any) -> Counted:
    """One call, and what the card counts from its start to its end."""
    reset()
    output = run(pipe, name, **call_kwargs)
    found = counters()
    return Counted(
        output=output,
        to_card_bytes=found.to_card_bytes,
        from_card_bytes=found.from_card_bytes,
        pageable_bytes=found.pageable_bytes,
        peak_bytes=found.used_peak_bytes,
    )


@cache
def whole(name: str) -> Counted:
    """The second call of the untuned pipeline, all of it on the card."""
    pipe = build(name).to("cuda")
    run(pipe, name)
    return counted(pipe, name)


@cache
def profiled(name: str) -> Profile:
    """The named pipeline's call on the null card."""
    kwargs = tiny_pipelines.CALL["flux" if name == "larger flux" else name]
    kwargs = {"prompt": "a photo of a cat", "num_inference_steps": 2, "output_type": "pt", **kwargs}
    return predict_profile(build(name), call_kwargs=kwargs, device=live_device(torch.device("cuda")))


@cache
def planned(name: str, fraction: float) -> Plan:
    """The plan for a budget between the smallest that works (0) and one that holds everything (1), and that budget."""
    profile = profiled(name)
    with pytest.raises(BudgetError) as raised:
        choose_plan(profile, 1, margin_fraction=MARGIN_FRACTION)
    least = raised.value.smallest_bytes
    most = choose_plan(profile, profile.device.usable_bytes).estimate.needed_bytes / (1 - MARGIN_FRACTION) + 1
    return choose_plan(profile, int(least + fraction * (most - least)), margin_fraction=MARGIN_FRACTION)


def with_more(plan: Plan, num_bytes: int) -> Plan:
    """The same plan held to a larger budget."""
    return replace(plan, budget_bytes=plan.budget_bytes + num_bytes)


class Encoding(DiffusionPipeline):
    """Encodes rows, then goes over them with a model in each step."""

    model_cpu_offload_seq = "encoder->model"
    shape: tuple[int, int]
    """Of the rows; a subclass says it, as diffusers takes components only."""

    def __init__(self, encoder: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.register_modules(encoder=encoder, model=model)

    @torch.no_grad()
    def __call__(self, num_inference_steps: int = 4) -> torch.Tensor:
        rows = self.encoder(torch.ones(self.shape, device=self._execution_device))
        for _ in range(num_inference_steps):
            rows = self.model(rows)
        return rows.cpu()


class Layers(nn.Module):
    """Layers of 32.1 MiB, one after the other."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(num_layers))

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def device(self) -> torch.device:
        return self.layers[0].weight.device

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            row = layer(row)
        return row


class OfOneRow(Encoding):
    shape = (1, WIDTH)


def context_bytes() -> int:
    """What the process holds beyond PyTorch's allocator."""
    return live_device(torch.device("cuda")).context_bytes
