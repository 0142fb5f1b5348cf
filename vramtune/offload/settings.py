"""Whether a call is the one that its plan was made for."""

from collections.abc import Mapping
from typing import Any

import torch

from vramtune.schema import Workload


def are_planned(workload: Workload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call's settings are the plan's, as far as they decide what it takes: other words cost the same.

    Of tensors, images and callbacks that is not known: False.
    """
    given = {**{f"argument {number}": value for number, value in enumerate(args)}, **kwargs}
    if not all(_is_plain(value) for value in given.values()):
        return False
    return _deciding(given) == _deciding(workload.call_kwargs)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | bool | int | float | torch.Generator)


def _deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are no words."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in settings.items()
        if value is not None and not isinstance(value, str | torch.Generator)
    }
