"""The GPU that a pipeline is planned for: named, or this machine's with what the pipeline's weights take of it already."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vramtune.schema import Device

if TYPE_CHECKING:
    import torch

    from vramtune.contract import Pipeline


def planned_device(pipe: "Pipeline", gpu: str | Device | None) -> Device:
    """The GPU that someone named, or described; this machine's where he did neither.

    Raises `UnknownNameError` for a name that is not known, `NoAcceleratorError` where this machine has no GPU.
    """
    if isinstance(gpu, Device):
        return gpu
    if gpu is None:
        from vramtune.machine.live import this_gpu

        return on_this_host(this_gpu(own_bytes=_held_bytes(pipe)), pipe)
    from vramtune.machine.gpus import find_gpu

    return find_gpu(gpu)


def measured_device(pipe: "Pipeline", target: "torch.device") -> Device:
    """A GPU of this machine; `NoAcceleratorError` where it cannot be measured."""
    from vramtune.machine.live import measured_gpu

    return on_this_host(measured_gpu(target, own_bytes=_held_bytes(pipe)), pipe)


def _held_bytes(pipe: "Pipeline") -> int:
    """What a pipeline's weights take of the accelerator already, of which a plan will dispose."""
    return sum(tensor.nbytes for tensor in _weights(pipe) if tensor.device.type not in ("cpu", "meta"))


def on_this_host(gpu: Device, pipe: "Pipeline") -> Device:
    """The device with what of the host's memory a pipeline's weights take already beside what is free, and how fast their
    files are read."""
    from vramtune.machine.storage import storage_rates
    from vramtune.mapped_files import MappedFiles

    mapped, own_bytes, file_bytes = MappedFiles(), 0, Counter[Path]()
    for tensor in _weights(pipe):
        if (file := mapped.file_of(tensor)) is not None:  # what is read of a file counts as free
            file_bytes[file] += tensor.nbytes
        elif tensor.device.type == "cpu":
            own_bytes += tensor.nbytes
    if gpu.ram_bytes is not None:
        gpu = replace(gpu, ram_bytes=gpu.ram_bytes + own_bytes)
    rates = storage_rates(file_bytes.most_common(1)[0][0]) if file_bytes else None
    if rates is None:
        return gpu
    return replace(
        gpu,
        storage_bytes_per_second=rates.storage_bytes_per_second,
        page_cache_bytes_per_second=rates.page_cache_bytes_per_second,
        storage_source="measured",
    )


def _weights(pipe: "Pipeline") -> "set[torch.Tensor]":
    from vramtune.contract import modules_of

    return {tensor for m in modules_of(pipe).values() for tensor in (*m.parameters(), *m.buffers())}
