"""What PyTorch's CUDA allocator takes for weights that a stock mode brings in, tensor by tensor, and lets go again.

A plan takes whole segments. The stock modes allocate each tensor for itself, and what a segment has beyond its tensors is
lost to all but further ones. A mode with a copy stream allocates on that stream: of its segments nothing else gets any.
"""

from collections.abc import Iterable
from functools import lru_cache

from vramtune.caching_allocator import reserved_peak_bytes
from vramtune.layout import round_up
from vramtune.schema import Weights

MATRIX_BYTES = 2**16
"""Matrices are taken for multiples of this, and biases for less."""

Sizes = tuple[int, ...]
"""Bytes of tensors that come and go together."""


def tensor_bytes(weights: Weights) -> Sizes:
    """The tensors of one layer, of which a profile knows the number and the sum: a matrix, and what is small beside it.

    Matrices tend to be whole multiples of a power of two; were a bias taken for a part of one, that would begin a segment.
    """
    if weights.num_tensors < 2:
        return (weights.allocated_bytes,) * weights.num_tensors
    large = weights.allocated_bytes // MATRIX_BYTES * MATRIX_BYTES
    small = round_up((weights.allocated_bytes - large) // (weights.num_tensors - 1))
    return (*([large] if large else []), *[small] * (weights.num_tensors - 1))


@lru_cache(maxsize=256)
def staying_bytes(tensors: Sizes) -> int:
    """For weights that come in one by one and stay."""
    return reserved_peak_bytes([(key, num_bytes) for key, num_bytes in enumerate(tensors) if num_bytes])


@lru_cache(maxsize=256)
def passing_bytes(visits: tuple[Sizes, ...], *, is_ahead: bool) -> int:
    """For weights each of which goes before the next ones come; or, where one is ahead, once those have come."""
    events: list[tuple[int, int]] = []
    before: list[tuple[int, int]] = []
    for number, tensors in enumerate(visits):
        come = [((number << 20) + index, num_bytes) for index, num_bytes in enumerate(tensors) if num_bytes]
        go = [(key, -num_bytes) for key, num_bytes in before]
        events += [*come, *go] if is_ahead else [*go, *come]
        before = come
    return reserved_peak_bytes(events)


def all_tensors(all_weights: Iterable[Weights]) -> Sizes:
    """Those of several layers."""
    return tuple(num_bytes for weights in all_weights for num_bytes in tensor_bytes(weights))
