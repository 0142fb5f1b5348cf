"""What `vramtune doctor` looks at: the facts of one machine that decide whether autotune works there, and how fast."""

from dataclasses import dataclass

from vramtune.schema.profile import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """Something that vramtune needs, and what is installed of it."""

    name: str
    required: str
    """As in the package's own metadata: `>=2.11`."""
    found: str | None
    """The version that is installed, or None."""
    is_supported: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that holds memory of a GPU; None is what the driver does not tell."""

    pid: int
    name: str | None
    num_bytes: int | None
    """All of its share, CUDA context included; unknown on Windows and inside of some containers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """NVIDIA's driver, as NVML tells."""

    version: str
    cuda_version: str
    """The newest CUDA that it runs."""
    card: str | None
    """Name of the first GPU that CUDA may use; None where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """The accelerator that PyTorch would use, and what a probe measured of it."""

    label: str
    """As PyTorch calls it: `cuda:0`."""
    count: int
    """How many of its kind there are."""
    name: str
    device: Device | None
    """Measured; None where the probe failed."""
    error: str | None
    """Why the probe failed, or None."""
    listed: Device | None
    """What the table of GPUs has for one of that name, or None."""
    holders: tuple[Holder, ...]
    """The other processes that hold its memory, most first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The host's memory; None is what the system does not tell, and a limit that is not set."""

    total_bytes: int | None
    available_bytes: int | None
    control_group_limit_bytes: int | None
    """Of the control group (a container, a job of a scheduler) that this process is in."""
    locked_limit_bytes: int | None
    """That one process may page-lock (`ulimit -l`). NVIDIA's driver does not count against it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """All that autotune needs of a machine, as it was found."""

    packages: tuple[Package, ...]
    """Python itself first."""
    torch_build: str | None
    """What PyTorch is built for: `CUDA 12.8`, `ROCm 6.4`, `CPU only`; None where it does not import."""
    torch_error: str | None
    """Why PyTorch does not import, or None."""
    driver: Driver | None
    accelerator: Accelerator | None
    host: Host
