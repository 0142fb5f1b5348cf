"""Denoisers' weights in float8 for as long as a plan that uses the permission is installed (`fp8_weights`).

What float8 loses would be lost for good: the host keeps the weights as they were beside those that the plan moves.
"""

from typing import Any, NamedTuple

import torch
from torch import nn

from vramtune.contract import (
    has_adapters,
    is_cast_by_layers,
    may_be_stored_in_float8,
    modules_of,
    store_as_before,
    store_in_float8,
)
from vramtune.errors import UsageError
from vramtune.schema import Plan

PERMISSION = "fp8_weights"


class Before(NamedTuple):
    """A weight that is stored in float8, and what it was."""

    tensors: dict[str, torch.Tensor | None]
    """The `_parameters` or `_buffers` of its module."""
    name: str
    weight: torch.Tensor
    value: torch.Tensor


class Float8Weights:
    """The components that are stored so, and what their weights were."""

    def __init__(self, pipe: Any, plan: Plan) -> None:
        planned = {placement.component for placement in plan.placements} if PERMISSION in plan.permissions else set()
        components = {name: component for name, component in modules_of(pipe).items() if name in planned}
        self._components = [each for each in components.values() if may_be_stored_in_float8(each)]
        self._before: list[Before] = []

    def apply(self) -> None:
        """Store them in float8."""
        for component in self._components:
            held = list(_weights(component))
            self._before += held  # first: an interrupt may come while some are cast
            store_in_float8(component)
        # what stays as it is would be kept twice, once the plan has it elsewhere
        self._before = [each for each in self._before if _is_cast(each)]

    def refuse_adapters(self) -> None:
        """Raise a `UsageError` for adapters that were loaded meanwhile.

        PEFT gives them the dtype that the weights are stored in: what their small numbers lose in float8 is gone, and no
        layer casts them for its forward. Those that were there before stay as they are.
        """
        for component in self._components:
            if has_adapters(component) and any(map(_is_lost, component.modules())):
                raise UsageError(
                    f"An adapter was loaded into a {type(component).__name__} whose weights the plan stores in float8: it came "
                    "in as float8 too, and cannot be computed with. Unload it, call remove() on what autotune or install "
                    "returned, load it, and tune again: then it is left as it is."
                )

    def undo(self) -> None:
        """Give the weights back as they were; one that was edited meanwhile keeps what it became."""
        for component in self._components:
            for layer in component.modules():
                if is_cast_by_layers(layer):
                    store_as_before(layer)
        while self._before:
            _restore(self._before[-1])
            self._before.pop()


def _weights(component: nn.Module) -> list[Before]:
    return [
        Before(tensors, name, weight, weight.data)  # type: ignore[arg-type]
        for module in component.modules()
        for tensors in (module._parameters, module._buffers)
        for name, weight in tensors.items()
        if weight is not None
    ]


def _is_lost(module: nn.Module) -> bool:
    """Whether a module has weights in float8 and does not cast them when it runs."""
    own = (weight for weight in module._parameters.values() if weight is not None)
    return any(weight.dtype == torch.float8_e4m3fn for weight in own) and not is_cast_by_layers(module)


def _is_cast(before: Before) -> bool:
    now = before.tensors.get(before.name)
    return now is not None and now.dtype != before.value.dtype


@torch.no_grad()
def _restore(before: Before) -> None:
    """Put the value back; where it is not what float8 had made of it any more, cast what there is."""
    now = before.tensors.get(before.name)
    if now is None or now.dtype == before.value.dtype:
        return  # exchanged, or given back already
    stored = before.value.to(now.dtype)
    is_same = torch.equal(stored.view(torch.uint8), now.data.to(stored.device).view(torch.uint8))
    value = before.value if is_same else now.data.to(before.value.dtype)
    if isinstance(now, nn.Parameter):
        now.data = value
        return
    before.weight.data = value
    before.tensors[before.name] = before.weight
