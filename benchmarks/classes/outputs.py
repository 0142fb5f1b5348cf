"""What a pipeline returns, as a flat list, and where two such lists differ."""

import random
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import PIL.Image
import torch

Output = list[object]
"""Tensors on the host, and other values."""


def seed_everything() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def flat(value: object) -> Output:
    return list(_flat(value))


def _flat(value: object) -> Iterator[object]:
    match value:
        case torch.Tensor():
            yield value.detach().cpu()
        case np.ndarray() if value.dtype.kind in "fiub":
            yield torch.from_numpy(value.copy())
        case np.ndarray():
            yield from _flat(value.tolist())
        case PIL.Image.Image():
            yield torch.from_numpy(np.array(value))
        case Mapping():
            yield from _flat(list(value.values()))
        case list() | tuple():
            for item in value:
                yield from _flat(item)
        case _ if hasattr(value, "__dict__") and not callable(value):
            yield from _flat(list(vars(value).values()))
        case _:
            yield value


def differences(found: Sequence[object], expected: Sequence[object]) -> list[str]:
    """Where an output is not the expected one, bit for bit; two NaN count as equal."""
    if len(found) != len(expected):
        return [f"{len(found)} values instead of {len(expected)}"]
    pairs = zip(found, expected, strict=True)
    return [text for one, other in pairs if (text := difference(one, other))]


def difference(one: object, other: object) -> str:
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        is_same = type(one) is type(other) and (not isinstance(one, str | int | float | bool) or one == other)
        return "" if is_same else f"{one!r} instead of {other!r}"[:100]
    if one.shape != other.shape or one.dtype != other.dtype:
        return f"{tuple(one.shape)} {one.dtype} instead of {tuple(other.shape)} {other.dtype}"
    if torch.allclose(one, other, rtol=0, atol=0, equal_nan=True):
        return ""
    largest = (one.double() - other.double()).abs().nan_to_num(float("inf")).max()
    return f"differs by {largest:.3g}"


def says_much(output: Output) -> bool:
    """Whether equality means anything: some tensor has several values, and no NaN."""
    tensors = [item for item in output if isinstance(item, torch.Tensor)]
    return any(len(tensor.unique()) > 1 for tensor in tensors) and not any(
        tensor.is_floating_point() and bool(tensor.isnan().any()) for tensor in tensors
    )
