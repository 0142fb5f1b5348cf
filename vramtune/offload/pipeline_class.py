"""The tuned pipeline's class: the pipeline's own, with the methods that place its weights taken over.

`__call__` is looked up on the class, so an instance attribute would not do. Name, module and documentation stay, so
that what is saved, mapped or printed by class name stays the same.
"""

import warnings
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch

from vramtune.contract import INSTALLATION, stock_offload_device, switched_off_tiling
from vramtune.schema import Plan

if TYPE_CHECKING:
    from vramtune.offload.runtime import Runtime


class PipelineTakeover:
    """What installing changes of the pipeline itself, and what it was."""

    def __init__(self, pipe: Any, runtime: "Runtime", plan: Plan) -> None:
        self._pipe, self._kind = pipe, type(pipe)
        self._tuned_kind = _tuned_class(type(pipe), runtime)
        self._tiled = [c for c in _tileable(pipe) if "vae_tiling" in plan.permissions]
        self._stock_device = stock_offload_device(pipe)

    def apply(self) -> None:
        """Take stock offloading off, switch on what the plan was permitted, take the methods over."""
        if self._stock_device is not None:
            self._pipe.remove_all_hooks()
        for component in self._tiled:
            component.enable_tiling()
        self._pipe.__class__ = self._tuned_kind

    def undo(self) -> None:
        """Put everything back as it was."""
        self._pipe.__class__ = self._kind
        for component in self._tiled:
            component.disable_tiling()
        if self._stock_device is not None:
            self._pipe.enable_model_cpu_offload(device=self._stock_device)


def _tileable(pipe: Any) -> list[Any]:
    return [component for component in pipe.components.values() if switched_off_tiling(component)]


def _tuned_class(kind: type[Any], runtime: "Runtime") -> type[Any]:
    @wraps(kind.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with runtime.call():
            return kind.__call__(self, *args, **kwargs)

    @wraps(kind.maybe_free_model_hooks)
    def maybe_free_model_hooks(self: Any) -> None:
        kind.maybe_free_model_hooks(self)  # with no stock hooks it only resets caches
        runtime.end_call()

    @wraps(kind.enable_model_cpu_offload)
    def enable_model_cpu_offload(self: Any, *args: Any, **kwargs: Any) -> None:
        runtime.apply_again()

    @wraps(kind.remove_all_hooks)
    def remove_all_hooks(self: Any) -> None:
        runtime.remove()

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
        INSTALLATION: runtime,
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
