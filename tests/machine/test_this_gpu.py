"""One truth about this machine's accelerator: measured where PyTorch sees it, else NVIDIA's driver and the table."""

from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

import vramtune
from tests import tiny_pipelines
from vramtune.errors import NoAcceleratorError, UsageError
from vramtune.machine import gpus
from vramtune.machine.live import live_device, this_gpu
from vramtune.units import MIB


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A PyTorch for the CPU on a machine with one GPU, as NVML reports it; a test sets its name and memory."""
    gpu = SimpleNamespace(name="NVIDIA GeForce RTX 4060", total=8188 * MIB, free=7000 * MIB, closed=0, asked=[])

    def handle(which: Any) -> str:
        gpu.asked.append(which)
        return "handle"

    def close() -> None:
        gpu.closed += 1

    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", close)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", handle)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", handle)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: gpu.name)
    monkeypatch.setattr(
        pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(total=gpu.total, free=gpu.free)
    )
    return gpu


def test_an_accelerator_that_pytorch_sees_is_measured(slow: ModuleType) -> None:
    device = this_gpu()
    assert device == live_device(torch.device("sim"))
    assert (device.name, device.source) == ("simulated accelerator", "measured")


def test_the_current_one_of_two_accelerators_is_meant(slow: ModuleType) -> None:
    slow.set_capacity(512 * MIB, 1)
    slow.set_device(1)
    assert this_gpu().total_bytes == 512 * MIB


def test_an_accelerator_without_room_to_measure_is_refused_with_its_error(slow: ModuleType) -> None:
    held = torch.empty(64 * MIB, dtype=torch.uint8, device="sim")
    slow.set_capacity(held.nbytes)
    with pytest.raises(NoAcceleratorError, match=r"'sim', cannot be measured \(.*memory.*\).*gpu=\"RTX 4060\""):
        this_gpu()
    pipe = tiny_pipelines.build("flux")
    with pytest.raises(NoAcceleratorError, match="cannot be measured"):
        vramtune.autotune(pipe, device="sim")


def test_without_pytorch_s_accelerator_the_table_and_nvml_s_free_memory_count(nvml: SimpleNamespace) -> None:
    device = this_gpu()
    assert (device.name, device.usable_bytes) == ("RTX 4060", 7000 * MIB)
    assert device.memory_bytes_per_second == gpus.find_gpu("RTX 4060").memory_bytes_per_second
    assert not device.is_context_measured
    assert nvml.asked == [0]
    assert nvml.closed == 1


def test_an_empty_gpu_has_no_more_usable_memory_than_its_line_of_the_table(nvml: SimpleNamespace) -> None:
    nvml.free = nvml.total
    assert replace(this_gpu(), ram_bytes=None, lockable_bytes=None) == gpus.find_gpu("RTX 4060")


def test_a_gpu_that_pytorch_cannot_measure_and_the_table_does_not_list_is_refused(nvml: SimpleNamespace) -> None:
    nvml.name, nvml.total = "Quadro P600", 2000 * MIB
    with pytest.raises(UsageError, match=r"Quadro P600.*not in the table.*gpu="):
        this_gpu()


def test_of_several_gpus_the_first_that_cuda_may_use_is_meant(
    nvml: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for visible in ("2,0", "GPU-8f6d,GPU-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        this_gpu()
    assert nvml.asked == [2, "GPU-8f6d"]


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetHandleByIndex"])
def test_without_any_gpu_the_error_says_to_name_one(
    nvml: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def fail(*_: int) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, function, fail)
    with pytest.raises(NoAcceleratorError, match='gpu="RTX 4060"'):
        this_gpu()
