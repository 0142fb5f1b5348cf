"""The tuned pipeline's class: the pipeline's own, with the methods that place its weights taken over.

`__call__` is looked up on the class, so an instance attribute would not do. Name, module and documentation stay, so
that what is saved, mapped or printed by class name stays the same.
"""

import warnings
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, Protocol

import torch

from vramtune.contract import INSTALLATION, stock_offload_device, switched_off_tiling
from vramtune.schema import Plan


class Host(Protocol):
    """What the methods need of an installation."""

    def call(self) -> AbstractContextManager[None]:
        """Around the pipeline's `__call__`."""

    def rest(self) -> None:
        """Free all but what is resident."""

    def apply_again(self) -> None:
        """Put the plan back on components that lost their hooks."""

    def remove(self) -> None:
        """Undo the installation."""


class Disguise:
    """What installing changes of the pipeline itself, and how it was."""

    def __init__(self, pipe: Any, installation: Host, plan: Plan) -> None:
        self._pipe, self._kind = pipe, type(pipe)
        self._tuned_kind = _tuned_class(type(pipe), installation)
        self._tiled = [part for part in _tileable(pipe) if "vae_tiling" in plan.permissions]
        self._stock_device = stock_offload_device(pipe)

    def put_on(self) -> None:
        """Take stock offloading off, switch on what the plan was permitted, take the methods over."""
        if self._stock_device is not None:
            self._pipe.remove_all_hooks()
        for part in self._tiled:
            part.enable_tiling()
        self._pipe.__class__ = self._tuned_kind

    def take_off(self) -> None:
        """As it was."""
        self._pipe.__class__ = self._kind
        for part in self._tiled:
            part.disable_tiling()
        if self._stock_device is not None:
            self._pipe.enable_model_cpu_offload(device=self._stock_device)


def _tileable(pipe: Any) -> list[Any]:
    return [part for part in pipe.components.values() if switched_off_tiling(part)]


def _tuned_class(kind: type[Any], installation: Host) -> type[Any]:
    @wraps(kind.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with installation.call():
            return kind.__call__(self, *args, **kwargs)

    @wraps(kind.maybe_free_model_hooks)
    def maybe_free_model_hooks(self: Any) -> None:
        kind.maybe_free_model_hooks(self)  # with no stock hooks it only resets caches
        installation.rest()

    @wraps(kind.enable_model_cpu_offload)
    def enable_model_cpu_offload(self: Any, *args: Any, **kwargs: Any) -> None:
        installation.apply_again()

    @wraps(kind.remove_all_hooks)
    def remove_all_hooks(self: Any) -> None:
        installation.remove()

    @wraps(kind.to)
    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        if any(isinstance(value, str | torch.device) for value in given):
            warnings.warn(
                "The pipeline is tuned: vramtune decides where its weights are, and `to` changes no device. Call "
                "remove() first to place it yourself.",
                stacklevel=2,
            )
        dtypes = [value for value in given if isinstance(value, torch.dtype)]
        return kind.to(self, dtype=dtypes[0]) if dtypes else self

    body = {
        INSTALLATION: installation,
        "__call__": call,
        "maybe_free_model_hooks": maybe_free_model_hooks,
        "enable_model_cpu_offload": enable_model_cpu_offload,
        "remove_all_hooks": remove_all_hooks,
        "to": to,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
    return type(kind.__name__, (kind,), body)
