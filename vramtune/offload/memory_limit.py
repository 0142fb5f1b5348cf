"""The budget, held by PyTorch's allocator for the length of a call."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

logger = logging.getLogger(__name__)


@contextmanager
def limit_memory(device: torch.device, num_bytes: int) -> Iterator[None]:
    """Let PyTorch's allocator have no more than so many bytes of a device, or than it may have already.

    At that limit it frees what it only caches, then it is out of memory: so what no plan foresees (a larger call,
    workspaces) takes the room of weights, and never more than the budget. Devices whose PyTorch backend has no such
    limit are not limited.
    """
    module = torch.get_device_module(device)
    if not hasattr(module, "get_per_process_memory_fraction"):
        yield
        return
    before = module.get_per_process_memory_fraction(device)
    _, total_bytes = torch.accelerator.get_memory_info(device)
    fraction = min(before, max(num_bytes, 0) / total_bytes)
    module.set_per_process_memory_fraction(fraction, device)
    logger.debug("memory limit of %s set to %.4f of it (was %.4f)", device, fraction, before)
    try:
        yield
    finally:
        module.set_per_process_memory_fraction(before, device)
        logger.debug("memory limit of %s put back to %.4f of it", device, before)
