"""Modules at real size that hold nothing."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from vramtune.catalog.dtypes import cast

Module = TypeVar("Module", bound=torch.nn.Module)


def empty(make: Callable[[], Module], *, dtype: torch.dtype) -> Module:
    """The module that `make` builds, in eval mode, its parameters and buffers on the meta device.

    Not `accelerate.init_empty_weights`: that computes buffers, and SD 3.5 Medium's table of positions (226
    million numbers) alone takes seconds; and it unties T5's embeddings, which then count twice.
    """
    with torch.device("meta"), NothingDrawn():
        module = make()
    cast(module, dtype=dtype)
    return module.eval()


class NothingDrawn(TorchFunctionMode):
    """While entered, no random values are drawn for weights: on the meta device Python does that, as slowly as it does the rest."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


DRAWS = {torch.Tensor.uniform_, torch.Tensor.normal_, torch.nn.init.kaiming_uniform_}
