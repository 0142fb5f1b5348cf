"""Facts of GPUs by name, from a table; rates that no data sheet gives are priors, listed here.

`gpus.csv` holds one GPU a line. `source` says where its facts were read, `derived` which columns were computed
instead: `float16_tflops` (dense, accumulating in float32) is multiprocessors x boost clock x FLOP per clock, 512
on GeForce cards, which agrees with the NVIDIA whitepapers (RTX 2080 Ti, 3090, 4090, 5090) within 0.3%;
`usable_gib` is the lowest "total capacity" in PyTorch's out-of-memory messages on Linux for cards of that size.
`sustained_fraction` is the share of that rate that the card's power limit leaves, where that is known to be less than
all: of the T4, base clock by boost clock (585 / 1590 MHz; at 70 W it multiplies at 24 of 65 TFLOP/s); of the A10G, what two
published calls of two sources left of it (`benchmarks/against_published.py`).
`memory_gib` is the nominal size. `aliases` say which GPU a short name means: H100 is the 80 GB SXM one.
"""

import csv
import re
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from vramtune.errors import UnknownNameError, UsageError
from vramtune.schema import Device, Spread, Spreads
from vramtune.units import GIB, MIB, format_bytes

# Priors: what a data sheet does not say. A measurement replaces them.


def _shares(*, matmul: float, convolution: float, attention: float, memory: float) -> dict[str, float]:
    """Attention of narrow heads, wide ones and under a mask reaches 2/3, 1/5 and 1/2 of the usual share, as on an H100."""
    return {
        "matmul": matmul,
        "convolution": convolution,
        "attention": attention,
        "narrow_attention": attention * 2 / 3,
        "wide_attention": attention / 5,
        "masked_attention": attention / 2,
        "memory": memory,
    }


CONTEXT_BYTES = 500 * MIB
"""CUDA context with lazily loaded kernels: reports range from 200 to 550 MiB; a high guess is the safe one..."""
CONTEXT_BYTES_BY_ARCHITECTURE = {"Hopper": 740 * MIB}
"""...where it was not seen: 693 MiB on an H100 (`facts_*`), 757 on an H200 (`on_gpu_*`; CUDA 13)."""
WORKSPACE_BYTES = {"Turing": 20 * MIB, "Ampere": 20 * MIB, "Ada": 20 * MIB, "Hopper": 32 * MIB, "Blackwell": 32 * MIB}
"""cuBLAS workspace: 8.1 MiB, which opens a 20 MiB segment of PyTorch's allocator; 32 MiB from Hopper on."""
LANE_BYTES_PER_SECOND = {3: 0.985e9, 4: 1.969e9, 5: 3.938e9}
"""Rate of one lane by PCI Express generation, after encoding."""
PINNED_FRACTION = 0.8
"""Share of the link that page-locked memory reaches: 11.5-12.3 of 15.8 GB/s (3.0 x16), 25 of 31.5 (4.0 x16)."""
PAGEABLE_FRACTION = 0.5
"""Share of the pinned rate that ordinary memory reaches: 5-6 of 11-12 GB/s (rapidsai/dask-cuda#98)."""
PAGEABLE_BYTES_PER_SECOND = 8e9
"""Upper limit of that, the driver's copy through its own pinned buffer: 63 GB in 7.5 s on an H20 (vllm-omni#5922)."""
READBACK_BYTES_PER_SECOND = 3e9
"""Upper limit of readback, which faults in fresh pages: 2.3 GB/s (vllm-omni#5922), 5 GB/s (dask-cuda#98)."""
OVERLAP_FRACTION = 0.95
"""Share of the pinned rate left beside kernels, which read the same memory; no published figure."""
COPY_LATENCY_SECONDS = 10e-6
"""Launch and set-up of one asynchronous copy; no published figure."""
LAUNCH_SECONDS = 1.5e-6
"""Time on the GPU of a kernel that does nothing: 1.2 to 1.6 microseconds (`calls_on_gpu`, H100)."""
OPERATION_SECONDS = 22e-6
"""Host time of a light eager operation and the Python around it (`roofline.host_seconds`): 21 microseconds beside an
H100; of published rows, 33 an operation of any kind beside an RTX 4090, 38 beside an L40S, 55-59 on older hosts."""
SPREADS = Spreads(
    gpu=Spread(low=0.8, high=1.35),
    host=Spread(low=0.7, high=1.6),
    copies=Spread(low=0.9, high=1.4),
    pageable_copies=Spread(low=0.4, high=3.0),
    activations=Spread(low=0.8, high=1.3),
    context=Spread(low=0.6, high=1.2),
)
"""Between what published calls lie, as shares of what is predicted for them (`benchmarks/against_published.py`): hosts
differ from 15 to 59 microseconds an operation, and copies back into ordinary memory from 0.46 to 8.9 GB/s."""
MEASURED_SPREADS = replace(
    SPREADS,
    gpu=Spread(low=0.85, high=1.25),
    host=Spread(low=0.75, high=1.4),
    copies=Spread(low=0.95, high=1.1),
    pageable_copies=Spread(low=0.6, high=1.6),
)
"""The same where rates were measured: what calls took on an H200 beside what was predicted (`on_gpu_*`)."""
TENSORFLOAT32_FRACTION = 0.5
"""Rate of TF32 as a share of float16's, by the data sheets of Ampere and later."""
STRIDED_ELEMENTS_PER_CLOCK = 1.0
"""Of one multiprocessor, pointwise on broadcast or strided operands: 250e9 to 350e9 a second on an H100 (`calls_on_gpu`)."""
GROUP_NORM_ELEMENTS_PER_CLOCK = 0.59
"""Of one multiprocessor, group norm's statistics: 4.2 M elements of a group take 3.6 ms on an H100 (`calls_on_gpu`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What GPUs of one make have in common; shares are of the dense peak and of the bandwidth (`Device`)."""

    float32_lanes: int
    """Per multiprocessor."""
    clock_hertz: float
    """Usual boost clock."""
    has_tensorfloat32: bool
    efficiency_fraction: dict[str, float]


ARCHITECTURES = {
    "Turing": Architecture(
        float32_lanes=64,
        clock_hertz=1.7e9,
        has_tensorfloat32=False,
        efficiency_fraction=_shares(matmul=0.70, convolution=0.55, attention=0.55, memory=0.80),
    ),
    "Ampere": Architecture(
        float32_lanes=128,
        clock_hertz=1.7e9,
        has_tensorfloat32=True,
        efficiency_fraction=_shares(matmul=0.70, convolution=0.55, attention=0.55, memory=0.85),
    ),
    "Ampere, data centre": Architecture(
        float32_lanes=64,
        clock_hertz=1.41e9,
        has_tensorfloat32=True,
        efficiency_fraction=_shares(matmul=0.80, convolution=0.50, attention=0.60, memory=0.85),
    ),
    "Ada": Architecture(
        float32_lanes=128,
        clock_hertz=2.5e9,
        has_tensorfloat32=True,
        efficiency_fraction=_shares(matmul=0.85, convolution=0.70, attention=0.70, memory=0.90),
    ),
    "Hopper": Architecture(
        float32_lanes=128,
        clock_hertz=1.98e9,
        has_tensorfloat32=True,
        efficiency_fraction=_shares(matmul=0.80, convolution=0.50, attention=0.63, memory=0.86),
    ),
    "Blackwell": Architecture(
        float32_lanes=128,
        clock_hertz=2.5e9,
        has_tensorfloat32=True,
        efficiency_fraction=_shares(matmul=0.75, convolution=0.42, attention=0.60, memory=0.88),
    ),
}
"""Hopper's shares are fitted to calls that were measured (`calls_on_gpu`, H100); the A100's products and convolutions are
taken to reach the same. No share is fitted to what others published (`against_published`), which leaves no reason to
change the rest, either; of Blackwell there is one row."""

MEMORY_TOLERANCE = 0.1
"""Share by which NVML's total may differ from the nominal size; it is up to 6.3% lower (ECC on L4, A10, L40S)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedGpu:
    """A line of the table: the device and what it is called."""

    device: Device
    names: frozenset[str]
    """Bare names (without case, punctuation and brand) that mean this GPU and no other."""
    model: str
    """The bare name without the memory size, which several GPUs may share."""


def gpu_names() -> tuple[str, ...]:
    """The names that `find_gpu` knows."""
    return tuple(gpu.device.name for gpu in _table())


def gpus() -> tuple[Device, ...]:
    """Every GPU of the table."""
    return tuple(gpu.device for gpu in _table())


def find_gpu(name: str) -> Device:
    """The GPU of that name: "4060", "rtx4060" and "NVIDIA GeForce RTX 4060" are one.

    Raises `UnknownNameError`, which lists near names, and `UsageError` for a name that GPUs with different memory
    share.
    """
    if not isinstance(name, str):
        raise UsageError(f'A GPU is named by a string, such as "RTX 4060"; got {name!r}.')
    bare = _bare(name)
    matches = [gpu.device for gpu in _table() if bare in gpu.names]
    matches = matches or [gpu.device for gpu in _table() if bare == gpu.model]
    if not matches:
        raise UnknownNameError("GPU", name, gpu_names())
    if len(matches) > 1:
        choice = " or ".join(repr(device.name) for device in matches)
        raise UsageError(f"GPU {name!r} is made with different memory sizes. Name {choice}.")
    return matches[0]


def gpu_of_driver(name: str, total_bytes: int) -> Device:
    """The GPU that a driver calls so and whose memory it gives; raises `UsageError` for one that is not listed."""
    bare = _bare(name)
    for gpu in _table():
        nominal_bytes = gpu.device.total_bytes
        is_as_large = abs(nominal_bytes - total_bytes) <= MEMORY_TOLERANCE * nominal_bytes
        if bare in {*gpu.names, gpu.model} and is_as_large:
            return gpu.device
    raise UsageError(
        f"This machine's GPU, {name!r} with {format_bytes(total_bytes)}, is not in the table: its arithmetic "
        "rate, memory bandwidth and PCI Express link are unknown. Name the GPU most like it, such as "
        'gpu="RTX 4060"; `vramtune gpus` lists them.'
    )


@cache
def _table() -> tuple[ListedGpu, ...]:
    with (files("vramtune.machine") / "gpus.csv").open(encoding="utf-8") as file:
        return tuple(_listed_gpu(row) for row in csv.DictReader(file))


def _listed_gpu(row: dict[str, str]) -> ListedGpu:
    model = re.sub(r" \d+GB$", "", row["name"])
    names = [row["name"], f"{model} {row['memory_gib']}GB", *filter(None, row["aliases"].split(";"))]
    return ListedGpu(device=_device(row), names=frozenset(map(_bare, names)), model=_bare(model))


def _device(row: dict[str, str]) -> Device:
    pinned = PINNED_FRACTION * int(row["pcie_lanes"]) * LANE_BYTES_PER_SECOND[int(row["pcie_generation"])]
    float16, float32 = (float(row[f"{dtype}_tflops"]) * 1e12 for dtype in ("float16", "float32"))
    make = ARCHITECTURES[row["architecture"] + (", data centre" if row["name"].startswith("A100") else "")]
    multiprocessors = round(float32 / (2 * make.float32_lanes * make.clock_hertz))
    float16 *= float(row["sustained_fraction"])
    return Device(
        name=row["name"],
        total_bytes=int(row["memory_gib"]) * GIB,
        usable_bytes=round(float(row["usable_gib"]) * GIB),
        context_bytes=CONTEXT_BYTES_BY_ARCHITECTURE.get(row["architecture"], CONTEXT_BYTES),
        workspace_bytes=WORKSPACE_BYTES[row["architecture"]],
        pinned_copy_bytes_per_second=pinned,
        pageable_copy_bytes_per_second=min(PAGEABLE_FRACTION * pinned, PAGEABLE_BYTES_PER_SECOND),
        readback_bytes_per_second=min(PAGEABLE_FRACTION * pinned, READBACK_BYTES_PER_SECOND),
        overlap_fraction=OVERLAP_FRACTION,
        copy_latency_seconds=COPY_LATENCY_SECONDS,
        flops_per_second={
            "float32": float32,
            "float16": float16,
            # Turing's tensor cores have no bfloat16: it is emulated in float32
            "bfloat16": float32 if row["architecture"] == "Turing" else float16,
            **({"tensorfloat32": TENSORFLOAT32_FRACTION * float16} if make.has_tensorfloat32 else {}),
        },
        memory_bytes_per_second=float(row["memory_gb_per_second"]) * 1e9,
        efficiency_fraction=dict(make.efficiency_fraction),
        launch_seconds=LAUNCH_SECONDS,
        multiprocessors=multiprocessors,
        elements_per_second={
            "strided": STRIDED_ELEMENTS_PER_CLOCK * make.clock_hertz,
            "group_norm": GROUP_NORM_ELEMENTS_PER_CLOCK * make.clock_hertz,
        },
        operation_seconds=OPERATION_SECONDS,
        spreads=SPREADS,
    )


def _bare(name: str) -> str:
    """The name without case, punctuation and brand: "NVIDIA GeForce RTX 4060 Ti" is "4060ti"."""
    return re.sub(r"nvidia|geforce|tesla|rtx|[^a-z0-9]", "", name.lower())
