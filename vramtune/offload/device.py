"""Which device a pipeline is installed on: what `device` and `gpu_id` mean to diffusers."""

import torch

from vramtune.errors import NoAcceleratorError, UsageError


def resolve_device(device: torch.device | str | None = None, gpu_id: int | None = None) -> torch.device:
    """The accelerator that was asked for, with its index.

    `device` and `gpu_id` mean what they mean in `enable_model_cpu_offload`: a type, a type with an index, or an
    index apart; left out, the current accelerator. Raises `UsageError` for the CPU, for Apple's GPUs, for two
    indices, for an index beyond the machine's, and `NoAcceleratorError` where the machine has no such accelerator.
    """
    if isinstance(gpu_id, bool) or not isinstance(gpu_id, int | None):
        raise UsageError(f"gpu_id is a GPU's number, such as 0; got {gpu_id!r}.")
    if device is None:
        current = _accelerator()
        if current is None:
            raise NoAcceleratorError(
                "A pipeline is tuned for a GPU, and PyTorch finds none on this machine. To predict for a GPU that "
                'you name: vramtune.profile(pipe, gpu="RTX 4060").'
            )
        device = current.type
    asked = _parsed(device)
    if asked.type == "cpu":
        raise UsageError("The CPU was asked for; a pipeline is tuned for a GPU. Leave `device` out or name a GPU.")
    own_index: int | None = asked.index
    if own_index is not None and gpu_id is not None:
        raise UsageError(
            f"Both gpu_id={gpu_id} and an index in device={str(device)!r} were given. Give one of the two."
        )
    return _present(asked.type, gpu_id if own_index is None else own_index)


def _accelerator() -> torch.device | None:
    return torch.accelerator.current_accelerator(check_available=True)


def _parsed(device: torch.device | str) -> torch.device:
    if isinstance(device, bool):
        raise UsageError(f"device={device!r} is not a device PyTorch knows.")
    try:
        return torch.device(device)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"device={device!r} is not a device PyTorch knows: {error}") from error


def _present(kind: str, index: int | None) -> torch.device:
    current = _accelerator()
    if current is None or current.type != kind:
        present = f"only {current.type!r}" if current else "no accelerator"
        raise NoAcceleratorError(
            f"Device {kind!r} was asked for; PyTorch finds {present} on this machine. Leave `device` out to use what "
            "is there."
        )
    if kind == "mps":
        raise UsageError("Apple's GPUs compute in the host's own memory: there is nothing to offload.")
    count = torch.accelerator.device_count()
    index = torch.accelerator.current_device_index() if index is None else index
    if not 0 <= index < count:
        raise UsageError(f"Device {kind}:{index} was asked for; this machine has {count}. Give an index below {count}.")
    return torch.device(kind, index)
