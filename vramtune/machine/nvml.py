"""What NVIDIA's driver says about a GPU and its memory, through NVML. Needs no torch and makes no CUDA context."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pynvml

from vramtune.errors import NoAcceleratorError
from vramtune.schema.machine import Driver, Holder


def first_gpu() -> tuple[str, int, int]:
    """Name, total and free bytes of the first GPU that CUDA may use, counted as NVML does (by PCI bus)."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    try:
        with _session():
            find = (
                pynvml.nvmlDeviceGetHandleByIndex if visible.isdigit() else pynvml.nvmlDeviceGetHandleByUUID
            )
            handle = find(int(visible) if visible.isdigit() else visible)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            return pynvml.nvmlDeviceGetName(handle), memory.total, memory.free
    except pynvml.NVMLError as error:
        raise NoAcceleratorError(
            f"This machine has no NVIDIA GPU that CUDA may use (NVML: {error}). "
            'Name one to predict for: gpu="RTX 4060".'
        ) from error


def driver() -> Driver | None:
    """The driver and the first GPU that CUDA may use; None where there is no driver."""
    try:
        with _session():
            cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
            version = str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None
    try:
        card = first_gpu()[0]
    except NoAcceleratorError:
        card = None
    # 12080 is CUDA 12.8
    return Driver(version=version, cuda_version=f"{cuda // 1000}.{cuda % 1000 // 10}", card=card)


def free_bytes(uuid: str) -> int:
    """Memory that no process holds; `uuid` as in `torch.cuda.get_device_properties(...).uuid`."""
    with _session():
        num_bytes: int = pynvml.nvmlDeviceGetMemoryInfo(_handle(uuid)).free
        return num_bytes


def holders(uuid: str) -> tuple[Holder, ...]:
    """Every process that computes or draws on the GPU, this one among them; `uuid` as in `free_bytes`."""
    with _session():
        handle = _handle(uuid)
        found = {
            process.pid: process
            for process in (
                *pynvml.nvmlDeviceGetGraphicsRunningProcesses(handle),
                *pynvml.nvmlDeviceGetComputeRunningProcesses(handle),
            )
        }
        return tuple(
            # in a container the driver may list a process with 0 bytes
            Holder(pid=pid, name=_process_name(pid), num_bytes=process.usedGpuMemory or None)
            for pid, process in found.items()
        )


@contextmanager
def _session() -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _handle(uuid: str) -> object:
    # by UUID: NVML counts GPUs by PCI bus and knows no CUDA_VISIBLE_DEVICES, CUDA may count the fastest first
    handle: object = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    return handle


def _process_name(pid: int) -> str | None:
    try:
        name: str = pynvml.nvmlSystemGetProcessName(pid)
    except pynvml.NVMLError:  # it has ended, or is another user's
        return None
    return name
