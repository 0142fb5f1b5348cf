"""The facts of this machine's accelerator: its memory as it is now, and how fast it is, measured.

Facts by name, of a GPU that need not be here, are in `device.py`.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import TypeVar

import pynvml
import torch

from vramtune.errors import NoAcceleratorError, UsageError
from vramtune.machine import nvml
from vramtune.machine.gpus import CONTEXT_BYTES, WORKSPACE_BYTES
from vramtune.machine.rates import Rates, measure_rates
from vramtune.schema import Device
from vramtune.schema.machine import Holder

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What is measured once."""

    rates: Rates
    context_bytes: int | None
    """None where it was there before and the driver does not tell."""
    workspace_bytes: int


def live_device(device: torch.device) -> Device:
    """An accelerator of this machine, whatever its name: memory as it is now, all rates measured.

    Usable is what is free and what PyTorch's allocator has reserved in this process, up to the limit that
    `set_per_process_memory_fraction` put on the latter, and the context. The rates are
    measured by the first call for a device (about half a second) and kept for the life of the process. `UsageError`
    for a device that is not there, `NoAcceleratorError` where there is none.
    """
    device = _indexed(device)
    probed = probe(device)
    context_bytes = CONTEXT_BYTES if probed.context_bytes is None else probed.context_bytes
    free_bytes, total_bytes = torch.accelerator.get_memory_info(device)
    reserved_bytes = torch.accelerator.memory_reserved(device)
    module = torch.get_device_module(device)
    fraction = getattr(
        module, "get_per_process_memory_fraction", lambda _: 1.0
    )  # not every accelerator has limits
    limit_bytes = int(fraction(device) * total_bytes)
    return Device(
        name=module.get_device_name(device),
        total_bytes=total_bytes,
        usable_bytes=min(free_bytes + reserved_bytes, limit_bytes) + context_bytes,
        context_bytes=context_bytes,
        workspace_bytes=probed.workspace_bytes,
        source="measured",
        **asdict(probed.rates),
    )


def holders(device: torch.device) -> tuple[Holder, ...]:
    """The other processes that hold memory of a GPU, most first; empty where the driver does not tell."""
    others = [holder for holder in _ask(nvml.holders, device) or () if holder.pid != os.getpid()]
    return tuple(sorted(others, key=lambda holder: holder.num_bytes or 0, reverse=True))


@cache
def probe(device: torch.device) -> Probed:
    """The rates of a device with an index, and what its libraries hold once they have been used."""
    free_before = None if _has_context(device) else _ask(nvml.free_bytes, device)
    torch.accelerator.empty_cache()
    reserved_before = torch.accelerator.memory_reserved(device)
    rates = measure_rates(device)
    reserved_bytes = torch.accelerator.memory_reserved(device)
    return Probed(
        rates=rates,
        context_bytes=_context_bytes(device, free_before=free_before, reserved_bytes=reserved_bytes),
        # what stays is the libraries'; where nothing stayed, they had it already
        workspace_bytes=reserved_bytes - reserved_before or _workspace_prior(device),
    )


def _context_bytes(device: torch.device, *, free_before: int | None, reserved_bytes: int) -> int | None:
    """What this process holds of an NVIDIA GPU beyond `reserved_bytes`; elsewhere no context is counted.

    NVML's figure for this process; in a container, where it has none, what is free less than `free_before`, before
    the context was made; None if it was there already.
    """
    if device.type != "cuda":
        return 0
    own = [holder.num_bytes for holder in _ask(nvml.holders, device) or () if holder.pid == os.getpid()]
    free_after = _ask(nvml.free_bytes, device)
    if free_before is not None and free_after is not None:
        own.append(free_before - free_after)
    return next((held - reserved_bytes for held in own if held and held > reserved_bytes), None)


def _has_context(device: torch.device) -> bool:
    # PyTorch's public `is_initialized` is true long before the context of a device is made
    return device.type != "cuda" or torch._C._cuda_hasPrimaryContext(device.index)  # type: ignore[attr-defined]


def _workspace_prior(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    is_hopper_or_later = torch.cuda.get_device_capability(device) >= (9, 0)
    return WORKSPACE_BYTES["Hopper" if is_hopper_or_later else "Ampere"]


def _ask(question: Callable[[str], Answer], device: torch.device) -> Answer | None:
    """NVML's answer about a device; None where there is no NVML (AMD's GPUs are `cuda` too) or it does not tell."""
    if device.type != "cuda":
        return None
    try:
        return question(str(torch.cuda.get_device_properties(device).uuid))
    except pynvml.NVMLError:
        return None


def _indexed(device: torch.device) -> torch.device:
    """The same device with its index."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        raise NoAcceleratorError(
            f"Asked for the facts of {str(device)!r}, but PyTorch sees no accelerator on this machine. "
            'Name a GPU to predict for: gpu="RTX 4060".'
        )
    index = device.index
    if index is None:
        index = torch.accelerator.current_device_index()
    if device.type != found.type or index >= torch.accelerator.device_count():
        raise UsageError(
            f"Asked for the facts of {str(device)!r}; this machine has {torch.accelerator.device_count()} "
            f"accelerators, counted from '{found.type}:0'. Name one of them."
        )
    return torch.device(device.type, index)
