"""What NVIDIA's driver reports about a GPU and its memory, through NVML, without torch and without a CUDA context."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pynvml

from vramtune.errors import NoAcceleratorError
from vramtune.printable import printable
from vramtune.schema import Driver, Holder


class VisibleGpu(NamedTuple):
    """A GPU as the driver reports it."""

    name: str
    total_bytes: int
    free_bytes: int


def first_gpu() -> VisibleGpu:
    """The first GPU that CUDA may use, counted as NVML does (by PCI bus); raises `NoAcceleratorError`."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    try:
        with _session():
            find = pynvml.nvmlDeviceGetHandleByIndex if visible.isdigit() else pynvml.nvmlDeviceGetHandleByUUID
            handle = find(int(visible) if visible.isdigit() else visible)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            return VisibleGpu(pynvml.nvmlDeviceGetName(handle), memory.total, memory.free)
    except pynvml.NVMLError as error:
        raise NoAcceleratorError(
            f"This machine has no NVIDIA GPU that CUDA may use (NVML: {error}). "
            'Name one to predict for: gpu="RTX 4060".'
        ) from error


def driver() -> Driver | None:
    """The driver and the name of the first GPU that CUDA may use; None where there is no driver."""
    try:
        with _session():
            cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        version = driver_version()
    except pynvml.NVMLError:
        return None
    try:
        gpu: str | None = first_gpu().name
    except NoAcceleratorError:
        gpu = None
    # 12080 is CUDA 12.8
    return Driver(version=version, cuda_version=f"{cuda // 1000}.{cuda % 1000 // 10}", gpu=gpu)


def driver_version() -> str:
    """The driver's own number; raises NVML's error where there is no driver."""
    with _session():
        return str(pynvml.nvmlSystemGetDriverVersion())


def free_bytes(uuid: str) -> int:
    """Memory that no process holds; `uuid` as in `torch.cuda.get_device_properties(...).uuid`."""
    with _session():
        num_bytes: int = pynvml.nvmlDeviceGetMemoryInfo(_handle(uuid)).free
        return num_bytes


def holders(uuid: str) -> tuple[Holder, ...]:
    """Every process that computes or draws on the GPU, this one included; `uuid` as in `free_bytes`."""
    with _session():
        handle = _handle(uuid)
        processes = {
            process.pid: process
            for process in (
                *pynvml.nvmlDeviceGetGraphicsRunningProcesses(handle),
                *pynvml.nvmlDeviceGetComputeRunningProcesses(handle),
            )
        }
        return tuple(
            # in a container the driver may list a process with 0 bytes
            Holder(pid=pid, name=_process_name(pid), num_bytes=process.usedGpuMemory or None)
            for pid, process in processes.items()
        )


@contextmanager
def _session() -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _handle(uuid: str) -> object:
    # by UUID: NVML counts GPUs by PCI bus and ignores CUDA_VISIBLE_DEVICES; CUDA may count the fastest first
    handle: object = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    return handle


def _process_name(pid: int) -> str | None:
    try:
        return printable(pynvml.nvmlSystemGetProcessName(pid))  # others choose it
    except pynvml.NVMLError:  # it has ended, or is another user's
        return None
