"""Weights that their layer casts when its forward begins and back when it ends (`enable_layerwise_casting`).

Both casts make tensors of their own on the device, the second one of what the first one was made of: a group's copy would
stay allocated beside it, and it would look like an edit. As the layer ends, its weights point at what they did when it began.
"""

from collections.abc import Iterator

import torch
from torch import nn

from vramtune.contract import is_cast_by_layers
from vramtune.plain_tensors import address_of, plain_tensors, point_at, value_of


class Cast:
    """A layer's forward hooks that let go of its cast weights."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def begin(self, *_: object) -> None:
        """Note what the weights point at."""
        self._before = [(tensor, value_of(tensor)) for tensor in _tensors_of(self._layer)]

    def end(self, *_: object) -> None:
        """Have them point at it again."""
        for tensor, value in self._before:
            if address_of(tensor) != value.data_ptr():
                point_at(tensor, value)
        self._before = []


def hook_casts(component: nn.Module) -> None:
    """Have every layer of a component that casts its weights let go of them."""
    for layer in component.modules():
        if is_cast_by_layers(layer) and not any(_is_ours(hook) for hook in layer._forward_hooks.values()):
            cast = Cast(layer)
            layer.register_forward_pre_hook(cast.begin)
            layer.register_forward_hook(cast.end, always_call=True)


def unhook_casts(component: nn.Module) -> None:
    """Take these hooks off."""
    for module in component.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if _is_ours(hook)]:
                hooks.pop(key, None)
        _drop_always_called(module)


def _drop_always_called(module: nn.Module) -> None:
    always_called = module._forward_hooks_always_called
    for key in [key for key in always_called if key not in module._forward_hooks]:
        always_called.pop(key, None)


def _is_ours(hook: object) -> bool:
    return isinstance(getattr(hook, "__self__", None), Cast)


def _tensors_of(layer: nn.Module) -> Iterator[torch.Tensor]:
    for module in layer.modules():
        for weight in (*module._parameters.values(), *module._buffers.values()):
            if weight is not None:
                yield from (plain.tensor for plain in plain_tensors(weight, module))
