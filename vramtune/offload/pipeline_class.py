"""The tuned pipeline's class: the pipeline's own, with the methods that place its weights taken over.

`__call__` is looked up on the class, so an instance attribute would not do. Name, module and documentation stay, so
that what is saved, mapped or printed by class name stays the same.
"""

import warnings
from collections.abc import Callable
from functools import update_wrapper, wraps
from typing import TYPE_CHECKING, Any

import torch

from vramtune.contract import CALL, INSTALLATION, stock_offload_device, switched_off_tiling
from vramtune.errors import UsageError
from vramtune.schema import Plan

if TYPE_CHECKING:
    from vramtune.offload.runtime import Runtime


class PipelineTakeover:
    """What installing changes of the pipeline itself, and what it was."""

    def __init__(self, pipe: Any, runtime: "Runtime", plan: Plan) -> None:
        self._pipe, self._kind = pipe, type(pipe)
        self._tuned_kind = _tuned_class(type(pipe), runtime, plan.workload.method)
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


def _tuned_class(kind: type[Any], runtime: "Runtime", method: str) -> type[Any]:
    """The class with these methods; modular pipelines get the two that LoRA loaders and our messages ask for as well."""

    def maybe_free_model_hooks(self: Any) -> None:
        kind.maybe_free_model_hooks(self)  # with no stock hooks it only resets caches
        runtime.end_call()

    def enable_model_cpu_offload(self: Any, *args: Any, **kwargs: Any) -> None:
        runtime.apply_again()

    def remove_all_hooks(self: Any) -> None:
        runtime.remove()

    def enable_sequential_cpu_offload(self: Any, *args: Any, **kwargs: Any) -> None:
        warnings.warn("The pipeline is tuned: sequential offloading takes over, and the plan is removed.", stacklevel=2)
        runtime.remove()
        self.enable_sequential_cpu_offload(*args, **kwargs)

    def refuse_copy(self: Any, *_: Any) -> Any:
        raise UsageError(
            "The pipeline is tuned and cannot be copied or pickled: its components' methods are taken over. Call remove() "
            "on what autotune or install returned first."
        )

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

    body: dict[str, Any] = {name: _in_call(getattr(kind, name), runtime) for name in (CALL, method)}
    for taken_over in (enable_model_cpu_offload, remove_all_hooks, to):
        body[taken_over.__name__] = _documented(taken_over, kind)
    for where_there in (maybe_free_model_hooks, enable_sequential_cpu_offload):
        if hasattr(kind, where_there.__name__):
            body[where_there.__name__] = _documented(where_there, kind)
    body |= {INSTALLATION: runtime, "__deepcopy__": refuse_copy, "__reduce_ex__": refuse_copy}
    body |= {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind.__name__, (kind,), body)


def _in_call(original: Callable[..., Any], runtime: "Runtime") -> Callable[..., Any]:
    @wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return runtime.run(original, (self, *args), kwargs)

    return call


def _documented(function: Callable[..., Any], kind: type[Any]) -> Callable[..., Any]:
    """Name and documentation of the class's own method, where it has one."""
    original = getattr(kind, function.__name__, None)
    return function if original is None else update_wrapper(function, original)
