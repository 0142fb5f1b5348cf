"""Modules at real size that hold nothing."""

from collections.abc import Callable
from typing import TypeVar

import torch

from vramtune.catalog.dtypes import cast

Module = TypeVar("Module", bound=torch.nn.Module)


def empty(make: Callable[[], Module], *, dtype: torch.dtype) -> Module:
    """The module that `make` builds, in eval mode, its parameters and buffers on the meta device.

    Not `accelerate.init_empty_weights`: that computes buffers, and SD 3.5 Medium's table of positions (226
    million numbers) alone takes seconds; and it unties T5's embeddings, which then count twice.
    """
    with torch.device("meta"):
        module = make()
    cast(module, dtype=dtype)
    return module.eval()
