"""What CUDA's reductions allocate: where one thread block would have too much to add up, several share an output.

They leave their parts in a buffer of global memory and count in another who is the last. After `setReduceConfig` in
`ATen/native/cuda/Reduce.cuh`.
"""

from collections.abc import Sequence

import torch

MULTIPROCESSORS, THREADS = 24, 1536
"""Of an RTX 4060, and how many each has room for. A larger card's reductions over many outputs are split more often; with
few outputs the number of inputs decides, and no card takes more."""
MOST_THREADS, WARP = 512, 32
"""Of a thread block of a reduction."""
LEAST_VALUES, MOST_VALUES = 16, 256
"""For a thread to add up."""
VECTOR = 4
"""Elements that are read at once at most."""
ACCUMULATOR_BYTES = 4
"""Of 16 and 32 bit numbers: float32."""


def staging_bytes(x: torch.Tensor, dims: Sequence[int] | None) -> tuple[int, ...]:
    """What a reduction of these dimensions (None or none: of all) takes beside its result: nothing, or two buffers."""
    if x.numel() == 0:
        return ()
    reduced = {dim % x.ndim for dim in dims} if dims else set(range(x.ndim))
    places = [(x.stride(dim), x.shape[dim], dim in reduced) for dim in reversed(range(x.ndim)) if x.shape[dim] > 1]
    inner = sorted((step, size) for step, size, is_reduced in places if is_reduced)
    outer = [(step, size) for step, size, is_reduced in places if not is_reduced]  # as they lie in the result
    num_inputs, num_outputs = _product(inner), _product(outer)
    is_along_inputs = bool(inner) and (not outer or inner[0][0] < outer[0][0])
    width, height = (num_inputs, num_outputs) if is_along_inputs else (num_outputs, num_inputs)
    vector = 1
    if is_along_inputs and inner[0][0] == 1 and not outer and width > 128 and len(_coalesced(inner)) == 1:
        width //= VECTOR
    elif not is_along_inputs and outer and outer[0][0] == 1:
        vector = _vector(x, inner, outer)
        width //= vector
    block_width, block_height = _block(width, height, MOST_THREADS // vector)
    inputs_at_once, outputs_at_once = (block_width, 1) if is_along_inputs else (1, block_width)
    is_split_by_warps = _ceil(num_inputs, inputs_at_once) >= min(block_height * 16, MOST_VALUES)
    if is_split_by_warps:
        inputs_at_once *= block_height
    else:
        outputs_at_once *= block_height
    num_values = _ceil(num_inputs, inputs_at_once)
    num_blocks = _ceil(num_outputs // vector, outputs_at_once)
    most_blocks = MULTIPROCESSORS * (THREADS // (block_width * block_height))
    if not is_split_by_warps or num_values < MOST_VALUES or num_blocks > most_blocks:
        return ()
    num_parts = max(
        min(_ceil(most_blocks, num_blocks), _ceil(num_values, LEAST_VALUES)), _ceil(num_values, MOST_VALUES)
    )
    if num_parts == 1:
        return ()
    a_part = ACCUMULATOR_BYTES * num_outputs * (1 if is_along_inputs else block_width * vector)
    return a_part * num_parts, 4 * num_blocks


def _block(width: int, height: int, most_threads: int) -> tuple[int, int]:
    """A thread block's."""
    wide, high = (min(most_threads, 1 << (size.bit_length() - 1)) for size in (max(width, 1), max(height, 1)))
    block_width = min(wide, WARP)
    block_height = min(high, most_threads // block_width)
    return min(wide, most_threads // block_height), block_height


def _vector(x: torch.Tensor, inner: list[tuple[int, int]], outer: list[tuple[int, int]]) -> int:
    """Outputs that are next to each other and read at once."""
    (_, row), *rows = _coalesced(outer)
    vector = VECTOR
    for number in (int(x.storage_offset()), row, *(step for step, _ in (*inner, *rows))):
        while number % vector:
            vector //= 2
    return vector


def _coalesced(dimensions: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Strides and sizes, where one continues another joined."""
    joined: list[tuple[int, int]] = []
    for step, size in dimensions:
        if joined and joined[-1][0] * joined[-1][1] == step:
            joined[-1] = joined[-1][0], joined[-1][1] * size
        else:
            joined.append((step, size))
    return joined


def _product(dimensions: list[tuple[int, int]]) -> int:
    product = 1
    for _, size in dimensions:
        product *= size
    return product


def _ceil(number: int, by: int) -> int:
    return -(-number // by)
