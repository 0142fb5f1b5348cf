"""Small tables that layers make of numbers at each of their calls: made once, where somebody keeps them.

diffusers reads GGUF's types of 4 to 6 bits with such tables: `torch.tensor([0, 4], device=...)` in
`diffusers/quantizers/gguf/utils.py`. For each the host copies some bytes to the device and waits; where weights are streamed,
those bytes stand behind whole groups in the queue of copies, in every layer.
"""

import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

GGUF_UTILS = "diffusers.quantizers.gguf.utils"
"""The module whose functions make them."""
Recipe = tuple[tuple[tuple[type, object], ...], tuple[tuple[str, Any], ...]]
"""What a table is made of: numbers with their types (True is not 1, and 1 not 1.0), and the options of `torch.tensor`."""


class Tables:
    """Tables by what they are made of; some of them are made ahead of their use."""

    def __init__(self, recipes: Iterable[Recipe] = ()) -> None:
        self._made: dict[Recipe, tuple[torch.Tensor, int]] = {}
        """Each with the number of in-place writes to it when it was made."""
        for recipe in recipes:
            self._make(recipe)

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """Of all of them."""
        return tuple(self._made)

    def table(self, numbers: Iterable[object], options: dict[str, Any]) -> torch.Tensor:
        """The table of these numbers, as `torch.tensor` makes it."""
        recipe = tuple((type(each), each) for each in numbers), tuple(options.items())
        made, version = self._made.get(recipe, (None, 0))
        return made if made is not None and made._version == version else self._make(recipe)

    def _make(self, recipe: Recipe) -> torch.Tensor:
        numbers, options = recipe
        made = torch.tensor([each for _, each in numbers], **dict(options))
        if not made.is_inference():  # of which nobody knows whether it was written to
            self._made[recipe] = made, made._version
        return made


class Keeper(Protocol):
    """What keeps tables for as long as they may be used."""

    @property
    def tables(self) -> Tables:
        """Those of now."""


class _Torch:
    """`torch` as that module sees it from the first kept table on; `tensor` is another one only where tables are kept."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def tensor(data: Any, **options: Any) -> torch.Tensor:
        """`torch.tensor`, or what it made of the same numbers before."""
        keeper: Keeper | None = None if torch.compiler.is_compiling() else getattr(_here, "keeper", None)
        if keeper is None or not isinstance(data, tuple | list) or any(isinstance(each, list) for each in data):
            return torch.tensor(data, **options)
        return keeper.tables.table(data, options)


_here = threading.local()
"""`keeper`: who keeps the tables of what this thread runs."""
_TORCH = _Torch()


def let_keep_tables(utils: Any) -> None:
    """Have a module like that one ask us for its tables."""
    if utils.torch is torch:
        utils.torch = _TORCH


@contextmanager
def tables_kept_by(keeper: Keeper) -> Iterator[None]:
    """Have tables made once for as long as `keeper` keeps them."""
    if (utils := sys.modules.get(GGUF_UTILS)) is not None:
        let_keep_tables(utils)
    before = getattr(_here, "keeper", None)
    _here.keeper = keeper
    try:
        yield
    finally:
        _here.keeper = before
