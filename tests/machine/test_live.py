import os
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from tests.simgpu.fixtures import restore
from vramtune.errors import NoAcceleratorError, UsageError
from vramtune.machine import live
from vramtune.machine.live import holders, live_device
from vramtune.machine.nvml import Holder
from vramtune.machine.rates import Rates, measure_rates
from vramtune.profiler.roofline import Work, work_seconds
from vramtune.schema import Device
from vramtune.units import GIB, MIB

# Slow, so that a probe has seen enough after little work of the host; every figure is another.
TRUTH = {
    "flops_per_second": 40e9,
    "memory_bytes_per_second": 600e6,
    "launch_seconds": 4e-6,
    "pinned_copy_bytes_per_second": 25e6,
    "pageable_copy_bytes_per_second": 6e6,
    "readback_bytes_per_second": 3e6,
    "copy_latency_seconds": 12e-6,
}


def sim_facts(index: int | None = None) -> Device:
    """Of `sim`, which PyTorch knows by that name only once it is built."""
    return live_device(torch.device("sim") if index is None else torch.device("sim", index))


@pytest.fixture
def slow(sim: ModuleType) -> Iterator[ModuleType]:
    """The simulated accelerator at `TRUTH`, not probed yet."""
    sim.set_rates(**TRUTH)
    live.probe.cache_clear()
    yield sim
    live.probe.cache_clear()


@pytest.fixture(scope="module")
def measured(built_sim: ModuleType) -> Device:
    """What is measured of it."""
    built_sim.set_rates(**TRUTH)
    live.probe.cache_clear()
    device = sim_facts()
    restore(built_sim)
    live.probe.cache_clear()
    return device


@pytest.mark.parametrize("fact", sorted(TRUTH.keys() - {"flops_per_second"}))
def test_rates_are_measured(measured: Device, fact: str) -> None:
    assert getattr(measured, fact) == pytest.approx(TRUTH[fact], rel=0.02)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_arithmetic_is_measured_by_dtype(measured: Device, dtype: str) -> None:
    assert measured.flops_per_second[dtype] == pytest.approx(TRUTH["flops_per_second"], rel=0.02)


@pytest.mark.parametrize("kind", ["matmul", "convolution", "attention", "pointwise", "memory"])
def test_every_kind_of_kernel_reaches_what_the_simulation_grants_it(measured: Device, kind: str) -> None:
    assert measured.efficiency_fraction[kind] == pytest.approx(1, rel=0.02)


def test_the_rest_is_said_as_it_is(measured: Device) -> None:
    assert measured.name == "simulated accelerator"
    assert measured.overlap_fraction == 1
    assert measured.context_bytes == measured.workspace_bytes == 0
    assert measured.source == "measured"


def test_a_fast_accelerator_is_measured_as_well(sim: ModuleType) -> None:
    rates = measure_rates(torch.device("sim", 0))
    truth = sim.rates()
    assert rates.flops_per_second["float16"] == pytest.approx(truth.flops_per_second, rel=0.02)
    assert rates.memory_bytes_per_second == pytest.approx(truth.memory_bytes_per_second, rel=0.02)
    assert rates.pinned_copy_bytes_per_second == pytest.approx(truth.pinned_copy_bytes_per_second, rel=0.02)
    assert rates.launch_seconds == pytest.approx(truth.launch_seconds, rel=0.02)


def test_the_roofline_foretells_other_sizes_from_what_was_measured(
    slow: ModuleType, measured: Device
) -> None:
    x, image = torch.ones(300, 700, device="sim"), torch.ones(1, 64, 32, 32, device="sim")
    weight = torch.ones(64, 64, 3, 3, device="sim")
    slow.reset()
    x @ x.T
    functional.conv2d(image, weight, padding=1)
    x + x
    works = (
        Work("matmul", "float32", 2 * 300 * 700 * 300, 2 * x.nbytes + 4 * 300 * 300),
        Work("convolution", "float32", 2 * 9 * 64 * 64 * 32 * 32, 2 * image.nbytes + weight.nbytes),
        Work("pointwise", "float32", 0, 3 * x.nbytes),
    )
    foretold = [work_seconds(work, measured) for work in works]
    counted = [row.end_seconds - row.start_seconds for row in slow.timeline()]
    assert foretold == pytest.approx(counted, rel=0.02)


def test_what_a_probe_takes_is_little_and_given_back(slow: ModuleType) -> None:
    slow.set_capacity(100 * MIB)
    before = slow.memory_allocated(), slow.memory_reserved(), slow.pinned_memory_allocated()
    slow.reset()
    sim_facts()
    assert (slow.memory_allocated(), slow.memory_reserved(), slow.pinned_memory_allocated()) == before
    assert slow.max_memory_allocated() - before[0] < 0.06 * 100 * MIB
    assert slow.max_pinned_memory_allocated() - before[2] <= 64 * MIB


def test_usable_is_what_this_process_may_hold_in_all(slow: ModuleType) -> None:
    slow.set_capacity(3 * GIB)
    held = torch.empty(100 * MIB, dtype=torch.uint8, device="sim")
    device = sim_facts()
    assert device.total_bytes == 3 * GIB
    assert device.usable_bytes == 3 * GIB
    assert slow.mem_get_info()[0] <= device.usable_bytes - held.nbytes


def test_usable_is_no_more_than_the_limit_set_for_this_process(
    slow: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow.set_capacity(4 * GIB)
    monkeypatch.setattr(slow, "get_per_process_memory_fraction", lambda device: 0.25, raising=False)
    assert sim_facts().usable_bytes == GIB


def test_a_second_look_measures_only_memory(slow: ModuleType) -> None:
    first = sim_facts()
    slow.reset()
    slow.set_capacity(2 * GIB)
    second = sim_facts(0)
    assert second.usable_bytes == 2 * GIB
    assert second.launch_seconds == first.launch_seconds
    assert slow.timeline() == []


def test_the_device_that_is_asked_for_is_measured(slow: ModuleType) -> None:
    slow.set_capacity(5 * GIB, 1)
    device = sim_facts(1)
    assert device.total_bytes == 5 * GIB
    assert device.flops_per_second["float32"] == pytest.approx(TRUTH["flops_per_second"], rel=0.02)
    assert slow.counters(0).num_operations == slow.counters(0).num_copies_in == 0
    assert slow.current_device() == 0


def test_random_numbers_of_the_caller_stay_the_same(slow: ModuleType) -> None:
    state = torch.get_rng_state()
    sim_facts()
    assert torch.equal(torch.get_rng_state(), state)


class Without(TorchDispatchMode):
    """As on a device that has no matrix products in a dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.mm.default and args[0].dtype is self.dtype:
            raise NotImplementedError(f"mm not implemented for {self.dtype}")
        return function(*args, **(kwargs or {}))


def test_a_dtype_that_the_device_lacks_counts_as_float32(slow: ModuleType) -> None:
    with Without(torch.bfloat16):
        device = sim_facts()
    assert device.flops_per_second.keys() == {"float32", "float16"}
    seconds = [work_seconds(Work("matmul", d, 10**9, 0), device) for d in ("bfloat16", "float32")]
    assert seconds[0] == seconds[1]


def test_without_float32_there_is_no_measuring(slow: ModuleType) -> None:
    with Without(torch.float32), pytest.raises(NotImplementedError, match="float32"):
        sim_facts()
    assert sim_facts().flops_per_second.keys() == {"float32", "float16", "bfloat16"}


@pytest.mark.parametrize("name", ["cpu", "cuda", "sim:2"])
def test_a_device_that_is_not_there_is_refused(sim: ModuleType, name: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}'; this machine has 2 accelerators, counted from 'sim:0'"):
        live_device(torch.device(name))


def test_without_an_accelerator_the_error_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    with pytest.raises(NoAcceleratorError, match='gpu="RTX 4060"'):
        live_device(torch.device("cuda"))


# ---------------------------------------------------------------------------------------------------
# NVIDIA, as its driver and PyTorch tell it

CUDA = torch.device("cuda", 1)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, measured: Device) -> Iterator[SimpleNamespace]:
    """A GPU whose driver and PyTorch are asked by the same names; probing it changes what `probing` says."""
    gpu = SimpleNamespace(
        free=7000 * MIB, reserved=0, has_context=False, drawing=[], computing=[], asked=set(), num_open=0
    )
    gpu.probing = {"free": 6600 * MIB, "reserved": 20 * MIB}

    def probe(device: torch.device) -> Rates:
        vars(gpu).update(gpu.probing)
        return Rates(**{field: getattr(measured, field) for field in Rates.__dataclass_fields__})

    def find(uuid: str) -> str:
        gpu.asked.add(uuid)
        return "handle"

    def name(pid: int) -> str:
        if pid == 13:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)
        return f"/bin/{pid}"

    def count(step: int) -> None:
        gpu.num_open += step

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: count(1))
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: count(-1))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", find)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(free=gpu.free))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda handle: gpu.computing)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetGraphicsRunningProcesses", lambda handle: gpu.drawing)
    monkeypatch.setattr(pynvml, "nvmlSystemGetProcessName", name)
    monkeypatch.setattr(live, "measure_rates", probe)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"0-{device.index}")
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(
        torch._C, "_cuda_hasPrimaryContext", lambda index: index == 1 and gpu.has_context, raising=False
    )
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.accelerator, "memory_reserved", lambda device: gpu.reserved)
    live.probe.cache_clear()
    yield gpu
    live.probe.cache_clear()
    assert gpu.num_open == 0


def process(pid: int, num_bytes: int | None) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=num_bytes)


def test_the_others_are_named_and_the_largest_comes_first(gpu: SimpleNamespace) -> None:
    gpu.drawing = [process(7, 100 * MIB), process(11, 30 * MIB)]
    gpu.computing = [
        process(7, 100 * MIB),
        process(os.getpid(), 999 * MIB),
        process(13, GIB),
        process(8, None),
        process(9, 0),
    ]
    assert holders(CUDA) == (
        Holder(pid=13, name=None, num_bytes=GIB),
        Holder(pid=7, name="/bin/7", num_bytes=100 * MIB),
        Holder(pid=11, name="/bin/11", num_bytes=30 * MIB),
        Holder(pid=8, name="/bin/8", num_bytes=None),
        Holder(pid=9, name="/bin/9", num_bytes=None),  # as in a container
    )
    assert gpu.asked == {"GPU-0-1"}


def test_where_no_driver_tells_there_are_no_others(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, sim: ModuleType
) -> None:
    gpu.computing = [process(7, GIB)]
    assert holders(torch.device("sim")) == ()
    for function in ("nvmlDeviceGetHandleByUUID", "nvmlInit"):

        def fail(*_: str) -> None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

        monkeypatch.setattr(pynvml, function, fail)
        assert holders(CUDA) == ()


def test_the_context_is_what_the_driver_counts_beyond_the_allocator(gpu: SimpleNamespace) -> None:
    gpu.probing["computing"] = [process(7, GIB), process(os.getpid(), 370 * MIB)]
    assert live.probe(CUDA).context_bytes == 350 * MIB


@pytest.mark.parametrize("listed", [[], [0], [None]], ids=["not", "with 0 bytes", "without bytes"])
def test_where_this_process_is_not_counted_the_context_is_what_free_memory_fell_by(
    gpu: SimpleNamespace, listed: list[int | None]
) -> None:
    gpu.probing["computing"] = [process(os.getpid(), num_bytes) for num_bytes in listed]
    assert live.probe(CUDA).context_bytes == 380 * MIB


def test_a_context_that_was_there_before_and_is_not_counted_is_unknown(gpu: SimpleNamespace) -> None:
    gpu.has_context = True
    assert live.probe(CUDA).context_bytes is None


def test_another_process_that_gave_memory_back_meanwhile_makes_no_negative_context(
    gpu: SimpleNamespace,
) -> None:
    gpu.probing["free"] = 7500 * MIB
    assert live.probe(CUDA).context_bytes is None


def test_without_nvml_a_context_is_unknown(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert live.probe(CUDA).context_bytes is None


def test_workspaces_are_what_stays_reserved_or_the_prior_where_they_were_there_before(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.reserved, gpu.probing["reserved"] = 6 * MIB, 38 * MIB
    assert live.probe(CUDA).workspace_bytes == 32 * MIB
    priors = []
    for capability in ((8, 9), (9, 0), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        live.probe.cache_clear()
        priors.append(live.probe(CUDA).workspace_bytes)
    assert priors == [20 * MIB, 32 * MIB, 32 * MIB]
