"""The facts of this machine's accelerator: its memory as it is now, and how fast it is, measured.

Facts by name, of a GPU that need not be here, are in `gpus.py`.
"""

import logging
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from typing import TypeVar

import pynvml
import torch

from vramtune import host_memory
from vramtune.errors import NoAcceleratorError, UsageError
from vramtune.layout import round_up, segment_bytes
from vramtune.machine import nvml, remembered
from vramtune.machine.gpus import CONTEXT_BYTES, MEASURED_SPREADS, WORKSPACE_BYTES, gpu_of_driver
from vramtune.machine.rates import Rates, measure_rates
from vramtune.schema import CERTAIN, Device, Holder, Spreads

Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What is measured once for a GPU under its driver and this PyTorch, and remembered."""

    rates: Rates
    context_bytes: int | None
    """None where the context existed before and the driver does not report it."""
    workspace_bytes: int


def this_gpu(*, own_bytes: int = 0) -> Device:
    """This machine's current accelerator; `own_bytes` as in `live_device`.

    Measured by `live_device` where PyTorch sees it. Where PyTorch sees none (a build for the CPU) but NVIDIA's driver
    does: the table's facts for the first GPU that CUDA may use, with no more usable bytes than are free now. Raises
    `NoAcceleratorError` where neither sees one or PyTorch cannot measure it, `UsageError` for one that is not listed.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        name, total_bytes, free_bytes = nvml.first_gpu()
        listed = gpu_of_driver(name, total_bytes)
        logger.debug("PyTorch sees no accelerator; facts of %s come from the table", listed.name)
        return replace(
            listed,
            usable_bytes=min(listed.usable_bytes, free_bytes),
            ram_bytes=host_memory.usable_bytes(),
            lockable_bytes=host_memory.lockable_bytes(),
        )
    return measured_gpu(accelerator, own_bytes=own_bytes)


def measured_gpu(device: torch.device, *, own_bytes: int = 0) -> Device:
    """An accelerator as `live_device` finds it; `NoAcceleratorError` where it cannot be measured."""
    try:
        return live_device(device, own_bytes=own_bytes)
    except NoAcceleratorError:
        raise
    except RuntimeError as error:  # how PyTorch reports whatever a device refuses: memory, kernels, queries
        raise NoAcceleratorError(
            f"This machine's accelerator, {str(device)!r}, cannot be measured ({str(error).splitlines()[0]}). "
            'Free its memory, or name a GPU to predict for: gpu="RTX 4060".'
        ) from error


def live_device(device: torch.device, *, own_bytes: int = 0) -> Device:
    """An accelerator of this machine, whatever its name: memory as it is now, all rates measured.

    Usable bytes are those that are free, or reserved by PyTorch's allocator in this process for nothing but the
    libraries' workspace and `own_bytes` (weights of the pipeline to be planned that are there already), up to the limit
    that `set_per_process_memory_fraction` put on the allocator, plus the context: what other models of this process hold
    is theirs. The first call for a device measures the rates (about half a second); they are remembered, from process to
    process where NVIDIA's driver says which GPU it is (`remembered`), and what calls took since corrects them. Raises
    `UsageError` for a device that is not there, `NoAcceleratorError` where there is none.
    """
    device = _indexed(device)
    return _corrected(device, _facts(device, probe(device), own_bytes=own_bytes))


def measured_again(device: torch.device) -> Device:
    """The facts as they are now, whatever is remembered; they are remembered from now on."""
    device = _indexed(device)
    facts = _facts(device, measure(device))
    remembered.remember(device, facts)
    probe.cache_clear()
    return _corrected(device, facts)


def _corrected(device: torch.device, facts: Device) -> Device:
    known = remembered.recall(device)
    return facts if known is None else remembered.corrected(facts, known.times_predicted)


def _facts(device: torch.device, probed: Probed, *, own_bytes: int = 0) -> Device:
    context_bytes = CONTEXT_BYTES if probed.context_bytes is None else probed.context_bytes
    torch.accelerator.empty_cache()
    free_bytes, total_bytes = torch.accelerator.get_memory_info(device)
    reserved_bytes = torch.accelerator.memory_reserved(device)
    others_bytes = max(reserved_bytes - probed.workspace_bytes - own_bytes, 0)
    module = torch.get_device_module(device)
    # not every accelerator has limits
    fraction = getattr(module, "get_per_process_memory_fraction", lambda _: 1.0)
    limit_bytes = int(fraction(device) * total_bytes)
    return Device(
        name=module.get_device_name(device),
        total_bytes=total_bytes,
        usable_bytes=max(min(free_bytes + reserved_bytes, limit_bytes) - others_bytes, 0) + context_bytes,
        context_bytes=context_bytes,
        is_context_measured=probed.context_bytes is not None,
        workspace_bytes=probed.workspace_bytes,
        kernels="cuda" if device.type == "cuda" else "cpu",
        source="measured",
        **asdict(probed.rates),
        ram_bytes=host_memory.usable_bytes(),
        lockable_bytes=host_memory.lockable_bytes(),
        spreads=_spreads(device, is_context_measured=probed.context_bytes is not None),
    )


def _spreads(device: torch.device, *, is_context_measured: bool) -> Spreads:
    """Of CUDA, whose predictions were held against GPUs; nothing is known of other accelerators'."""
    if device.type != "cuda":
        return Spreads()
    return replace(MEASURED_SPREADS, context=CERTAIN) if is_context_measured else MEASURED_SPREADS


def holders(device: torch.device) -> tuple[Holder, ...]:
    """The other processes that hold memory of a GPU, most first; empty where the driver does not report them."""
    others = [holder for holder in _ask(nvml.holders, device) or () if holder.pid != os.getpid()]
    return tuple(sorted(others, key=lambda holder: holder.num_bytes or 0, reverse=True))


@cache
def probe(device: torch.device) -> Probed:
    """What is remembered of a device with an index, or measured now and remembered."""
    known = remembered.recall(device)
    if known is None:
        probed = measure(device)
        remembered.remember(device, _facts(device, probed))
        return probed
    facts = known.facts
    logger.debug("%s as measured on %s", device, known.measured_on)
    return Probed(
        rates=Rates(**{field.name: getattr(facts, field.name) for field in fields(Rates)}),
        context_bytes=facts.context_bytes if facts.is_context_measured else None,
        workspace_bytes=_workspace_prior(device),  # which this process's environment decides
    )


def measure(device: torch.device) -> Probed:
    """The rates of a device with an index, and what its libraries hold once they have been used."""
    free_before = None if _has_context(device) else _ask(nvml.free_bytes, device)
    torch.accelerator.empty_cache()
    reserved_before = torch.accelerator.memory_reserved(device)
    rates = measure_rates(device)
    reserved_bytes = torch.accelerator.memory_reserved(device)
    probed = Probed(
        rates=rates,
        context_bytes=_context_bytes(device, free_before=free_before, reserved_bytes=reserved_bytes),
        # what stays is the libraries'; where nothing stayed, they had it already
        workspace_bytes=reserved_bytes - reserved_before or _workspace_prior(device),
    )
    logger.debug("measured %s: %s", device, probed)
    return probed


def _context_bytes(device: torch.device, *, free_before: int | None, reserved_bytes: int) -> int | None:
    """What this process holds of an NVIDIA GPU beyond `reserved_bytes`; 0 on other accelerators.

    NVML's figure for this process; in a container, where NVML has none, the fall of free memory since `free_before`,
    when there was no context; None if there was one already.
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
    """What PyTorch takes for cuBLAS: as `CUBLAS_WORKSPACE_CONFIG` says (":4096:8" is 8 times 4096 KiB), or its default."""
    if device.type != "cuda":
        return 0
    asked = re.findall(r":(\d+):(\d+)", os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""))
    if num_bytes := sum(int(kibibytes) * int(count) * 1024 for kibibytes, count in asked):
        return segment_bytes(round_up(num_bytes))
    is_hopper_or_later = torch.cuda.get_device_capability(device) >= (9, 0)
    return WORKSPACE_BYTES["Hopper" if is_hopper_or_later else "Ampere"]


def _ask(question: Callable[[str], Answer], device: torch.device) -> Answer | None:
    """NVML's answer about a device; None where there is no NVML (AMD's GPUs are `cuda` too) or no answer."""
    if device.type != "cuda":
        return None
    try:
        return question(str(torch.cuda.get_device_properties(device).uuid))
    except pynvml.NVMLError:
        return None


def _indexed(device: torch.device) -> torch.device:
    """The same device with its index."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        raise NoAcceleratorError(
            f"Asked for the facts of {str(device)!r}, but PyTorch sees no accelerator on this machine. "
            'Name a GPU to predict for: gpu="RTX 4060".'
        )
    index = device.index
    if index is None:
        index = torch.accelerator.current_device_index()
    if device.type != accelerator.type or index >= torch.accelerator.device_count():
        raise UsageError(
            f"Asked for the facts of {str(device)!r}; this machine has {torch.accelerator.device_count()} "
            f"accelerators, counted from '{accelerator.type}:0'. Name one of them."
        )
    return torch.device(device.type, index)
