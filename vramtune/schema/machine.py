"""A GPU as the planner sees it, and what `vramtune doctor` looks at on a machine."""

from dataclasses import dataclass
from typing import Literal

Source = Literal["predicted", "measured"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU as the planner sees it."""

    name: str
    total_bytes: int
    usable_bytes: int
    """What this process may hold: total less the driver's own, the desktop's and other processes' share."""
    context_bytes: int
    """The CUDA context of one process: held from the first call on, outside PyTorch's counters."""
    is_context_measured: bool = False
    """Whether `context_bytes` is this machine's own figure, not a usual one."""
    workspace_bytes: int
    """Library workspaces (cuBLAS) that stay reserved once used."""
    pinned_copy_bytes_per_second: float
    """Host to device from page-locked memory, one large copy, GPU otherwise idle."""
    pageable_copy_bytes_per_second: float
    """Host to device from ordinary memory; blocks the host."""
    readback_bytes_per_second: float
    """Device to host into ordinary memory, as `module.to("cpu")` does; blocks the host."""
    overlap_fraction: float
    """Share of the pinned rate that remains while kernels run (0-1)."""
    copy_latency_seconds: float
    """Fixed cost of one copy."""
    flops_per_second: dict[str, float]
    """Peak dense multiply-add rate by dtype: `float32`, `float16`, `bfloat16`."""
    memory_bytes_per_second: float
    efficiency_fraction: dict[str, float]
    """Share of these two that kernels reach (0-1): of `flops_per_second` by kind of operation (`matmul`,
    `convolution`, `attention`, `pointwise`), of the bandwidth as `memory`."""
    launch_seconds: float
    """Least time of one kernel."""
    source: Source = "predicted"


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
