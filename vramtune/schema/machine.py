"""A GPU as the planner sees it, and what `vramtune doctor` looks at on a machine."""

from dataclasses import dataclass, field
from typing import Literal

from vramtune.schema.figures import Bytes, Count, Factor, Fraction, PerSecond, Seconds, Times
from vramtune.schema.files import Saved

Source = Literal["predicted", "measured"]
Kernels = Literal["cuda", "cpu"]
StorageSource = Literal["assumed", "given", "measured"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Between what a figure may turn out to be, as factors of what is expected: 0.8 and 1.3 are 20% less and 30% more."""

    low: Fraction = 1.0
    high: Factor = 1.0


CERTAIN = Spread()


@dataclass(frozen=True, slots=True, kw_only=True)
class Spreads:
    """How sure predictions for a device are: what each kind of figure is likely to be."""

    gpu: Spread = CERTAIN
    """Seconds of the GPU's operations."""
    host: Spread = CERTAIN
    """Seconds that the host takes to issue them."""
    copies: Spread = CERTAIN
    """Seconds of copies from page-locked memory."""
    pageable_copies: Spread = CERTAIN
    """Seconds of copies from ordinary memory, also into page-locked memory, and back into it."""
    activations: Spread = CERTAIN
    """Bytes of activations, with the libraries' workspaces among them."""
    context: Spread = CERTAIN
    """Bytes of the CUDA context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU as the planner sees it."""

    name: str
    total_bytes: Bytes
    usable_bytes: Bytes
    """What this process may hold: total less the driver's own, the desktop's and other processes' share."""
    context_bytes: Bytes
    """The CUDA context of one process: held from the first call on, outside PyTorch's counters."""
    is_context_measured: bool = False
    """Whether `context_bytes` is this machine's own figure, not a usual one."""
    workspace_bytes: Bytes
    """Library workspaces (cuBLAS) that stay reserved once used."""
    pinned_copy_bytes_per_second: PerSecond
    """Host to device from page-locked memory, one large copy, GPU otherwise idle."""
    pageable_copy_bytes_per_second: PerSecond
    """Host to device from ordinary memory; blocks the host."""
    readback_bytes_per_second: PerSecond
    """Device to host into ordinary memory, as `module.to("cpu")` does; blocks the host."""
    staging_bytes_per_second: PerSecond = 8e9
    """From ordinary into page-locked host memory, by one thread. The default is a usual one: 8 to 12 GB/s."""
    page_cache_bytes_per_second: PerSecond | None = None
    """From page cache into this process, as files that are mapped are: by page faults, in one thread. None: at no cost."""
    storage_bytes_per_second: PerSecond = 3e9
    """From storage into this process, likewise. The default is a usual one, of an NVMe drive."""
    storage_source: StorageSource = "assumed"
    """Where the two come from."""
    ram_bytes: Bytes | None = None
    """Host memory that weights of this process may take: what is available less a reserve. None: nobody knows, no limit."""
    lockable_bytes: Bytes | None = None
    """How much of that may be page-locked. None: nobody knows, no limit."""
    overlap_fraction: Fraction
    """Share of the pinned rate that remains while kernels run (0-1)."""
    copy_latency_seconds: Seconds
    """Fixed cost of one copy."""
    flops_per_second: dict[str, PerSecond]
    """Peak dense multiply-add rate by dtype: `float32`, `float16`, `bfloat16`; and `tensorfloat32`, in which cuDNN
    convolves float32 by default, where the GPU has it."""
    memory_bytes_per_second: PerSecond
    efficiency_fraction: dict[str, Fraction]
    """Share of these two that kernels reach (0-1): of `flops_per_second` by kind of operation (`matmul`,
    `convolution`, `attention`, of heads up to 64 wide `narrow_attention`, over 256 wide `wide_attention`, under a
    mask `masked_attention`), of the bandwidth as `memory`."""
    launch_seconds: Seconds
    """Fixed time of one kernel on the GPU."""
    multiprocessors: Count = 1
    elements_per_second: dict[str, PerSecond] = field(default_factory=dict)
    """Elements that one multiprocessor gets through, by kind: `group_norm` (a block of threads adds up a group alone)
    and `strided` (pointwise on operands that are broadcast or not contiguous). A kind that is left out costs its
    traffic alone."""
    operation_seconds: Seconds = 0.0
    """What the host takes to issue an eager operation, with the Python around it (`roofline.host_seconds`)."""
    kernels: Kernels = "cuda"
    """Whose kernels PyTorch runs there, which decides what they allocate: of another accelerator, the CPU's."""
    times_predicted: Times = 1.0
    """How many times what the rates say arithmetic took in calls on this machine (`Remembered`)."""
    spreads: Spreads = Spreads()
    """How sure these facts are."""
    source: Source = "predicted"

    @property
    def takes_segments(self) -> bool:
        """Whether PyTorch's allocator there takes whole segments: CUDA's does."""
        return self.kernels == "cuda"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered(Saved):
    """What a GPU of this machine has shown, under one driver and one PyTorch."""

    measured_on: str
    """Day of the measurement: `2026-11-26`."""
    facts: Device
    """As measured."""
    times_predicted: dict[str, Times] = field(default_factory=dict)
    """How many times what these facts say arithmetic took, by call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageRates(Saved):
    """How fast files of one file system of this machine are read, measured."""

    measured_on: str
    """Day of the measurement: `2026-11-27`."""
    storage_bytes_per_second: PerSecond
    """As in `Device`."""
    page_cache_bytes_per_second: PerSecond
    """As in `Device`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package that vramtune needs, and the version that is installed."""

    name: str
    required: str
    """Versions that vramtune's own metadata asks for: `>=2.11`."""
    installed: str | None
    """The installed version, or None."""
    is_supported: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that holds memory of a GPU; None where the driver does not tell."""

    pid: int
    name: str | None
    num_bytes: int | None
    """Its whole share, CUDA context included; unknown on Windows and inside some containers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """NVIDIA's driver, as NVML reports it."""

    version: str
    cuda_version: str
    """The newest CUDA version that it runs."""
    gpu: str | None
    """Name of the first GPU that CUDA may use, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """The accelerator that PyTorch would use, and its measured rates."""

    label: str
    """PyTorch's name for it: `cuda:0`."""
    count: int
    """Number of accelerators of its kind."""
    name: str
    device: Device | None
    """Measured facts; None where measuring failed."""
    error: str | None
    """Why measuring failed, or None."""
    listed: Device | None
    """The data sheet's facts for a GPU of that name, or None."""
    holders: tuple[Holder, ...]
    """Other processes that hold its memory, the largest share first."""
    remembered: Remembered | None = None
    """What predictions on this machine rest on from now on; None where the driver does not say which GPU this is."""
    remembered_path: str | None = None
    """Its file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The host's memory; None where the system does not tell, or no limit is set."""

    total_bytes: int | None
    available_bytes: int | None
    control_group_limit_bytes: int | None
    """Limit of this process's control group: a container, or a scheduler's job."""
    locked_limit_bytes: int | None
    """What one process may page-lock (`ulimit -l`); NVIDIA's driver does not count against it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Everything that autotune needs from a machine, as it is now."""

    packages: tuple[Package, ...]
    """Python first."""
    torch_build: str | None
    """Platform of the PyTorch build: `CUDA 12.8`, `ROCm 6.4`, `CPU only`; None where torch does not import."""
    torch_error: str | None
    """Why torch does not import, or None."""
    driver: Driver | None
    accelerator: Accelerator | None
    host: Host
