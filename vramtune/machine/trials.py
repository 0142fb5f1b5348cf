"""What is timed to measure an accelerator: copies of bytes, and a kernel of each kind.

Each function makes the trial of a size: its tensors are there before, so that only the call itself is timed.
"""

import logging
from collections.abc import Callable

import torch
from torch.nn import functional

Trial = tuple[Callable[[], object], int]
"""What is timed, and the FLOPs or bytes of one call."""
Make = Callable[..., Trial]
"""Makes the trial of a size, on a `device` and in a `dtype`."""

logger = logging.getLogger(__name__)


def tiny_kernel(size: int, *, device: torch.device, dtype: torch.dtype) -> Trial:
    """One addition to so few numbers that the launch is all of it."""
    tiny = torch.zeros(size, device=device, dtype=dtype)
    return lambda: tiny.add_(1), 0


def pinned_copy(size: int, *, device: torch.device, dtype: torch.dtype) -> Trial:
    """From page-locked memory of the host."""
    host = locked_if_possible(torch.ones(size, device="cpu", dtype=dtype))
    there = torch.empty(size, device=device, dtype=dtype)
    return lambda: there.copy_(host, non_blocking=True), host.nbytes


def locked_if_possible(host: torch.Tensor) -> torch.Tensor:
    """The same in page-locked memory; where the system refuses that, weights will lie in ordinary memory too."""
    try:
        return host.pin_memory()
    except RuntimeError as error:
        logger.debug("page-locked memory is refused, so copies are measured from ordinary memory: %s", error)
        return host


def pageable_copy(size: int, *, device: torch.device, dtype: torch.dtype) -> Trial:
    """From ordinary memory of the host."""
    host = torch.ones(size, device="cpu", dtype=dtype)
    there = torch.empty(size, device=device, dtype=dtype)
    return lambda: there.copy_(host), host.nbytes


def readback(size: int, *, device: torch.device, dtype: torch.dtype) -> Trial:
    """Copies into fresh memory each time, whose pages are mapped as they are filled, as in `module.to("cpu")`."""
    there, kept = torch.zeros(size, device=device, dtype=dtype), list[torch.Tensor]()
    return lambda: kept.append(there.cpu()), there.nbytes


def matmul(edge: int, *, device: torch.device, dtype: torch.dtype) -> Trial:
    """A product of two square matrices."""
    left, right = (_random(edge, edge, device=device, dtype=dtype) for _ in range(2))
    return lambda: left @ right, 2 * edge**3


def convolution(num_images: int, *, device: torch.device, dtype: torch.dtype) -> Trial:
    """3 x 3, 256 to 256 channels, images of 32 x 32: 1 MiB each at 16 bits, with its result.

    Channels last, as cuDNN's kernels want them: what it takes to bring other images into that order is priced apart.
    """
    images = _random(num_images, 256, 32, 32, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = _random(256, 256, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    return lambda: functional.conv2d(images, weight, padding=1), 2 * images.numel() * 256 * 9


def attention(num_tokens: int, *, width: int = 64, device: torch.device, dtype: torch.dtype) -> Trial:
    """640 channels in heads of that width: 5 KiB per token at 16 bits, with its result."""
    query, key, value = (_random(1, 640 // width, num_tokens, width, device=device, dtype=dtype) for _ in range(3))
    # two matrix products per head, as `vramtune.profiler.operations.attention_flops` counts them
    flops = 2 * 2 * query.numel() * num_tokens
    return lambda: functional.scaled_dot_product_attention(query, key, value), flops


def addition(size: int, *, device: torch.device, dtype: torch.dtype) -> Trial:
    """Two operands read, a result written."""
    left, right = (torch.ones(size, device=device, dtype=dtype) for _ in range(2))
    return lambda: left + right, 3 * left.nbytes


def strided(size: int, *, device: torch.device, dtype: torch.dtype) -> Trial:
    """Every second number, as rotary embeddings take them."""
    pairs = torch.ones(size, 2, device=device, dtype=dtype)[:, 0]
    return lambda: -pairs, 2 * size * dtype.itemsize


def group_norm(size: int, *, device: torch.device, dtype: torch.dtype) -> Trial:
    """An image in 32 groups, each of which one block of threads adds up."""
    image, weight = (torch.ones(*shape, device=device, dtype=dtype) for shape in ((1, 32, size // 32), (32,)))
    return lambda: functional.group_norm(image, 32, weight, weight), 2 * image.nbytes + 2 * weight.nbytes


def _random(*shape: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Random, because a GPU computes constants with less power, so faster; the caller's generators stay untouched."""
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(shape, device=device, dtype=dtype, generator=generator)
