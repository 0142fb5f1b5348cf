"""What a machine has of what autotune needs. Nothing here raises: whatever is broken is a finding."""

import platform
import re
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType

from vramtune import host_memory
from vramtune.errors import UsageError
from vramtune.machine import nvml
from vramtune.machine.gpus import find_gpu
from vramtune.schema import Accelerator, Device, Host, Machine, Package


def examine() -> Machine:
    """This machine, as it is now; an accelerator's rates are measured, in about half a second, and remembered."""
    packages = tuple(installed_packages())
    build, error, accelerator = None, None, None
    try:
        import torch
    except (ImportError, OSError) as failure:  # OSError: a shared library that it links is broken
        error = str(failure)
    else:
        build, accelerator = _build(torch), _accelerator()
    return Machine(
        packages=packages,
        torch_build=build,
        torch_error=error,
        driver=nvml.driver(),
        accelerator=accelerator,
        host=_host(),
    )


# ---------------------------------------------------------------------------------------------------
# Software


def installed_packages() -> Iterator[Package]:
    """Python and what vramtune's own metadata requires, with the versions that are installed."""
    python = metadata.metadata("vramtune")["Requires-Python"]
    yield _package("Python", python, platform.python_version())
    for requirement in metadata.requires("vramtune") or ():
        name, required = re.split(r"(?=[<>=!~])", requirement.partition(";")[0].strip(), maxsplit=1)
        yield _package(name.strip(), required, _installed(name.strip()))


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package(name: str, required: str, installed: str | None) -> Package:
    least = required.removeprefix(">=")
    is_supported = installed is not None and _release(installed) >= _release(least)
    return Package(name=name, required=required, installed=installed, is_supported=is_supported)


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version, without its build: 2.13.0+cpu is (2, 13, 0)."""
    numbers = re.match(r"[\d.]*\d", version)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


def _build(torch: ModuleType) -> str:
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return "CPU only"


# ---------------------------------------------------------------------------------------------------
# Accelerator


def _accelerator() -> Accelerator | None:
    """The accelerator that PyTorch would use, measured; `error` says why where that fails."""
    import torch

    from vramtune.machine import remembered
    from vramtune.machine.live import holders, measured_again

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return None
    indexed = torch.device(accelerator.type, torch.accelerator.current_device_index())
    name = torch.get_device_module(indexed).get_device_name(indexed)
    device, error = None, None
    try:
        device = measured_again(indexed)
    except RuntimeError as failure:  # PyTorch's for whatever a device refuses: memory, kernels
        error = str(failure).splitlines()[0]
    return Accelerator(
        label=str(indexed),
        count=torch.accelerator.device_count(),
        name=name,
        device=device,
        error=error,
        listed=_listed(name),
        holders=holders(indexed),
        remembered=remembered.recall(indexed),
        remembered_path=str(known.path) if (known := remembered.identity(indexed)) is not None else None,
    )


def _listed(name: str) -> Device | None:
    try:
        return find_gpu(name)
    except UsageError:
        return None


# ---------------------------------------------------------------------------------------------------
# Host


def _host() -> Host:
    memory = host_memory.linux_memory()
    return Host(
        total_bytes=memory.get("MemTotal"),
        available_bytes=memory.get("MemAvailable"),
        control_group_limit_bytes=min(host_memory.control_group_limits(), default=None),
        locked_limit_bytes=host_memory.locked_limit_bytes(),
    )
