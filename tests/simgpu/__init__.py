"""A GPU for machines without one: the simulated accelerator, PyTorch's device `sim`.

`load()` builds it once (20 s; needs a C++ compiler) and registers it; `torch.sim` then has memory, streams,
events and devices like `torch.cuda`, and the simulation's settings and counters (`torch_sim.py`). It has real
numbers, a hard memory capacity, virtual time, and an error for every access that is not ordered after a
conflicting one.
"""

import sys
from types import ModuleType
from typing import Any

import torch
from torch.utils import backend_registration

from tests.simgpu.build import SimBuildError

__all__ = ["SimBuildError", "load"]


def load() -> ModuleType:
    """`torch.sim`, built and registered with PyTorch the first time, before or after diffusers is imported.

    From then on it is this process's accelerator (`torch.accelerator`, diffusers' `get_device()`): PyTorch
    knows no way back.
    """
    if not hasattr(torch, "sim"):
        register()
        tell_diffusers()
    sim: ModuleType = torch.get_device_module("sim")
    return sim


def register() -> None:
    """Give PyTorch the name `sim` and its device module, at default rates and capacity."""
    from tests.simgpu import torch_sim  # builds the extension: what fails here leaves PyTorch as it was

    backend_registration.rename_privateuse1_backend("sim")
    torch._register_device_module("sim", torch_sim)  # type: ignore[no-untyped-call]
    backend_registration.generate_methods_for_privateuse1_backend(for_storage=True)
    torch_sim.set_rates()
    for index in range(torch_sim.device_count()):
        torch_sim.set_capacity(torch_sim.DEFAULT_CAPACITY_BYTES, index)


def tell_diffusers() -> None:
    """Make diffusers see the device if it is imported already: it looks once, at import, and remembers."""
    if "diffusers.utils.torch_utils" not in sys.modules:
        return
    torch_utils: Any = sys.modules["diffusers.utils.torch_utils"]
    torch_utils.TorchDeviceBackend._detect_device_type.cache_clear()
    torch_utils.torch_device = torch_utils.get_device()
    if pipeline_utils := sys.modules.get("diffusers.pipelines.pipeline_utils"):
        pipeline_utils.SUPPORTED_DEVICE_MAP[:] = ["balanced", torch_utils.get_device(), "cpu"]
