import os
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from tests.machine.conftest import TRUTH
from tests.simgpu.fixtures import restore
from vramtune.errors import NoAcceleratorError, UsageError
from vramtune.machine import live, trials
from vramtune.machine.gpus import CONTEXT_BYTES
from vramtune.machine.live import holders, live_device
from vramtune.machine.rates import Rates, measure_rates
from vramtune.pricing.roofline import work_seconds
from vramtune.profiler.operations import attention_flops
from vramtune.schema import Device, Holder, Work
from vramtune.units import GIB, MIB


def sim_facts(index: int | None = None) -> Device:
    """The facts of `sim`, a name that PyTorch knows only once it is built."""
    return live_device(torch.device("sim") if index is None else torch.device("sim", index))


@pytest.fixture(scope="module")
def measured(built_sim: ModuleType) -> Device:
    """What is measured of the simulated accelerator."""
    built_sim.set_rates(**TRUTH)
    live.probe.cache_clear()
    device = sim_facts()
    restore(built_sim)
    live.probe.cache_clear()
    return device


@pytest.mark.parametrize("fact", sorted(TRUTH.keys() - {"flops_per_second"}))
def test_copy_rates_and_latencies_are_measured_within_two_percent(measured: Device, fact: str) -> None:
    assert getattr(measured, fact) == pytest.approx(TRUTH[fact], rel=0.02)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_arithmetic_rate_of_each_dtype_is_measured_within_two_percent(measured: Device, dtype: str) -> None:
    assert measured.flops_per_second[dtype] == pytest.approx(TRUTH["flops_per_second"], rel=0.02)


@pytest.mark.parametrize("kind", ["matmul", "convolution", "narrow_attention", "attention", "wide_attention", "memory"])
def test_every_kind_of_kernel_reaches_what_the_simulation_grants_it(measured: Device, kind: str) -> None:
    assert measured.efficiency_fraction[kind] == pytest.approx(1, rel=0.02)


def test_an_accelerator_without_context_and_workspaces_is_measured_to_have_none(measured: Device) -> None:
    assert measured.name == "simulated accelerator"
    assert measured.overlap_fraction == 1
    assert measured.context_bytes == measured.workspace_bytes == 0
    assert measured.is_context_measured
    assert measured.source == "measured"


def test_an_accelerator_whose_kernels_take_their_traffic_and_no_host_time_is_measured_so(measured: Device) -> None:
    assert measured.elements_per_second == {}
    assert measured.operation_seconds == 0
    assert measured.flops_per_second["tensorfloat32"] == pytest.approx(measured.flops_per_second["float32"], rel=0.02)


def test_the_rates_of_a_fast_accelerator_are_measured_within_two_percent(sim: ModuleType) -> None:
    fast, truth = measure_rates(torch.device("sim", 0)), sim.rates()
    assert fast.flops_per_second["float16"] == pytest.approx(truth.flops_per_second, rel=0.02)
    assert fast.memory_bytes_per_second == pytest.approx(truth.memory_bytes_per_second, rel=0.02)
    assert fast.pinned_copy_bytes_per_second == pytest.approx(truth.pinned_copy_bytes_per_second, rel=0.02)
    assert fast.launch_seconds == pytest.approx(truth.launch_seconds, rel=0.02)


def test_the_attention_trial_counts_the_flops_that_the_roofline_counts() -> None:
    counted_flops = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "scaled_dot_product" in function.overloadpacket.__name__:
                counted_flops.append(attention_flops(*args[:3]))
            return function(*args, **(kwargs or {}))

    call, flops = trials.attention(24, device=torch.device("cpu"), dtype=torch.float32)
    with Seen():
        call()
    assert counted_flops == [flops]


def test_measured_rates_predict_the_seconds_of_other_sizes(slow: ModuleType, measured: Device) -> None:
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
    predicted = [work_seconds(work, measured) for work in works]
    counted = [row.end_seconds - row.start_seconds for row in slow.timeline()]
    assert predicted == pytest.approx(counted, rel=0.02)


def test_a_measurement_takes_little_memory_and_gives_it_back(slow: ModuleType) -> None:
    slow.set_capacity(100 * MIB)
    before = slow.memory_allocated(), slow.memory_reserved(), slow.pinned_memory_allocated()
    slow.reset()
    sim_facts()
    assert (slow.memory_allocated(), slow.memory_reserved(), slow.pinned_memory_allocated()) == before
    assert slow.max_memory_allocated() - before[0] < 0.06 * 100 * MIB
    assert slow.max_pinned_memory_allocated() - before[2] <= 64 * MIB


def test_usable_bytes_are_free_and_own_ones(slow: ModuleType) -> None:
    slow.set_capacity(3 * GIB)
    before_bytes = slow.memory_reserved()
    held = torch.empty(100 * MIB, dtype=torch.uint8, device="sim")
    assert sim_facts().total_bytes == 3 * GIB
    assert sim_facts().usable_bytes == 3 * GIB - before_bytes - held.nbytes  # other models' stays theirs
    own = live_device(torch.device("sim", 0), own_bytes=held.nbytes)
    assert own.usable_bytes == 3 * GIB - before_bytes
    assert slow.mem_get_info()[0] <= own.usable_bytes - held.nbytes


def test_usable_bytes_stay_within_the_limit_set_for_this_process(
    slow: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow.set_capacity(4 * GIB)
    monkeypatch.setattr(slow, "get_per_process_memory_fraction", lambda device: 0.25, raising=False)
    assert sim_facts().usable_bytes == GIB


def test_a_second_call_for_a_device_reads_only_its_memory(slow: ModuleType) -> None:
    first = sim_facts()
    slow.reset()
    slow.set_capacity(2 * GIB)
    second = sim_facts(0)
    assert second.usable_bytes == 2 * GIB
    assert second.launch_seconds == first.launch_seconds
    assert slow.timeline() == []


def test_of_two_devices_only_the_one_asked_for_is_measured(slow: ModuleType) -> None:
    slow.set_capacity(5 * GIB, 1)
    device = sim_facts(1)
    assert device.total_bytes == 5 * GIB
    assert device.flops_per_second["float32"] == pytest.approx(TRUTH["flops_per_second"], rel=0.02)
    assert slow.counters(0).num_operations == slow.counters(0).num_copies_in == 0
    assert slow.current_device() == 0


def test_a_measurement_keeps_the_caller_s_random_state(slow: ModuleType) -> None:
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
    assert device.flops_per_second.keys() == {"float32", "float16", "tensorfloat32"}
    seconds = [work_seconds(Work("matmul", d, 10**9, 0), device) for d in ("bfloat16", "float32")]
    assert seconds[0] == seconds[1]


def test_a_device_without_float32_cannot_be_measured(slow: ModuleType) -> None:
    with Without(torch.float32), pytest.raises(NotImplementedError, match="float32"):
        sim_facts()
    assert sim_facts().flops_per_second.keys() == {"float32", "float16", "bfloat16", "tensorfloat32"}


@pytest.mark.parametrize("name", ["cpu", "cuda", "sim:2"])
def test_a_device_that_is_not_there_is_refused(sim: ModuleType, name: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}'; this machine has 2 accelerators, counted from 'sim:0'"):
        live_device(torch.device(name))


def test_without_an_accelerator_the_error_says_to_name_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    with pytest.raises(NoAcceleratorError, match='gpu="RTX 4060"'):
        live_device(torch.device("cuda"))


# ---------------------------------------------------------------------------------------------------
# NVIDIA, as its driver and PyTorch report it

CUDA = torch.device("cuda", 1)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, measured: Device) -> Iterator[SimpleNamespace]:
    """The second of two GPUs, as its driver and PyTorch report it; measuring it sets what `probing` holds."""
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
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"0-{device.index}"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(
        torch._C, "_cuda_hasPrimaryContext", lambda index: index == 1 and gpu.has_context, raising=False
    )
    accelerator = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: accelerator)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda device: (gpu.free, 8 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce RTX 4060")
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.accelerator, "memory_reserved", lambda device: gpu.reserved)
    live.probe.cache_clear()
    yield gpu
    live.probe.cache_clear()
    assert gpu.num_open == 0


def context(device: Device) -> tuple[int, bool]:
    return device.context_bytes, device.is_context_measured


def process(pid: int, num_bytes: int | None) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=num_bytes)


def test_holders_are_the_other_processes_by_name_and_the_largest_comes_first(gpu: SimpleNamespace) -> None:
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


def test_without_a_driver_that_reports_processes_there_are_no_holders(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, sim: ModuleType
) -> None:
    gpu.computing = [process(7, GIB)]
    assert holders(torch.device("sim")) == ()
    for function in ("nvmlDeviceGetHandleByUUID", "nvmlInit"):

        def fail(*_: str) -> None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

        monkeypatch.setattr(pynvml, function, fail)
        assert holders(CUDA) == ()


def test_the_context_is_what_the_driver_counts_for_this_process_beyond_the_allocator(gpu: SimpleNamespace) -> None:
    gpu.probing["computing"] = [process(7, GIB), process(os.getpid(), 370 * MIB)]
    assert context(live_device(CUDA)) == (350 * MIB, True)


@pytest.mark.parametrize("listed", [[], [0], [None]], ids=["not", "with 0 bytes", "without bytes"])
def test_without_the_driver_s_count_the_context_is_the_fall_of_free_memory(
    gpu: SimpleNamespace, listed: list[int | None]
) -> None:
    gpu.probing["computing"] = [process(os.getpid(), num_bytes) for num_bytes in listed]
    assert context(live_device(CUDA)) == (380 * MIB, True)


def test_a_context_that_existed_before_and_is_not_counted_is_not_measured(gpu: SimpleNamespace) -> None:
    gpu.has_context = True
    assert context(live_device(CUDA)) == (CONTEXT_BYTES, False)


def test_memory_freed_by_another_process_meanwhile_makes_no_negative_context(gpu: SimpleNamespace) -> None:
    gpu.probing["free"] = 7500 * MIB
    assert context(live_device(CUDA)) == (CONTEXT_BYTES, False)


def test_without_nvml_the_context_is_not_measured(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert context(live_device(CUDA)) == (CONTEXT_BYTES, False)


def test_workspaces_are_what_stays_reserved_or_the_prior_where_nothing_does(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)  # the tests for a GPU ask for one
    gpu.reserved, gpu.probing["reserved"] = 6 * MIB, 38 * MIB
    assert live_device(CUDA).workspace_bytes == 32 * MIB
    priors = []
    for capability in ((8, 9), (9, 0), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        live.probe.cache_clear()
        priors.append(live_device(CUDA).workspace_bytes)
    assert priors == [20 * MIB, 32 * MIB, 32 * MIB]


@pytest.mark.parametrize(
    ("asked", "taken"), [(":4096:8", 32 * MIB), (":16:8", 2 * MIB), (":4096:2:16:8", 20 * MIB), ("nonsense", 20 * MIB)]
)
def test_who_asks_pytorch_for_another_workspace_has_it_counted(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, asked: str, taken: int
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", asked)
    gpu.probing["reserved"] = gpu.reserved
    assert live_device(CUDA).workspace_bytes == taken
