import gc
from types import ModuleType

import pytest
import torch
from diffusers import DiffusionPipeline
from torch.utils.flop_counter import FlopCounterMode

from tests import tiny_pipelines
from tests.simgpu.stock_modes import MODES, MeasuredCall, call, on_cpu

# diffusers' Euler scheduler hands a tensor to numpy: on the CPU as well
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")

NAMES = list(tiny_pipelines.CALL)


def second_call(name: str, mode: str) -> MeasuredCall:
    """The first one settles the order of prefetching."""
    gc.collect()
    pipe = tiny_pipelines.build(name)
    MODES[mode](pipe)
    call(pipe, name)
    return call(pipe, name)


def weight_bytes(pipe: DiffusionPipeline) -> int:
    modules = (c for c in pipe.components.values() if isinstance(c, torch.nn.Module))
    return sum(t.nbytes for module in modules for t in (*module.parameters(), *module.buffers()))


@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline_gives_the_cpus_numbers_bit_for_bit_each_time(sim: ModuleType, name: str) -> None:
    pipe = tiny_pipelines.build(name).to("sim")
    first, second = call(pipe, name), call(pipe, name)
    assert torch.equal(first.output, on_cpu(name))
    assert torch.equal(second.output, first.output)
    assert second.seconds == first.seconds > 0
    assert second.counters == first.counters


@pytest.mark.parametrize("name", ["sdxl", "flux", "ltx"])
def test_flops_but_for_attention_agree_with_pytorchs_counter(sim: ModuleType, name: str) -> None:
    call(tiny_pipelines.build(name).to("sim"), name)
    counted = sum(row.flops for row in sim.timeline() if "attention" not in row.name)
    with FlopCounterMode(display=False) as counter:  # which does not know attention on the CPU
        tiny_pipelines.run(tiny_pipelines.build(name), name)
    assert counted == counter.get_total_flops() < sim.counters().flops


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_bfloat16_gives_the_cpus_numbers_bit_for_bit(sim: ModuleType, name: str) -> None:
    pipe = tiny_pipelines.build(name).to(torch.bfloat16)
    expected = tiny_pipelines.run(pipe, name)
    assert torch.equal(call(pipe.to("sim"), name).output, expected)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "resident"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("sdxl", "flux", "wan") else pytest.mark.slow) for name in NAMES]
)
def test_stock_modes_run_unchanged(sim: ModuleType, name: str, mode: str) -> None:
    assert torch.equal(second_call(name, mode).output, on_cpu(name))


def test_model_offload_copies_unchanged_weights_back(sim: ModuleType) -> None:
    resident, offloaded = second_call("sdxl", "resident"), second_call("sdxl", "model offload")
    copied_in = offloaded.counters.moved_bytes - resident.counters.moved_bytes
    copied_out = offloaded.counters.moved_back_bytes - resident.counters.moved_back_bytes
    assert copied_in == copied_out == weight_bytes(tiny_pipelines.build("sdxl"))
    assert offloaded.peak_bytes < resident.peak_bytes
    assert offloaded.seconds > resident.seconds


def test_group_offload_synchronises_the_host_for_every_group(sim: ModuleType) -> None:
    resident, streamed = second_call("flux", "resident"), second_call("flux", "group, leaf, stream")
    recorded = second_call("flux", "group, leaf, stream, recorded")
    assert resident.counters.num_synchronizes == 1  # the measurement's own
    assert streamed.counters.num_synchronizes > recorded.counters.num_synchronizes > 100
    assert streamed.counters.moved_back_bytes == resident.counters.moved_back_bytes
    assert streamed.peak_bytes < recorded.peak_bytes < resident.peak_bytes


class Forgetful(torch.Stream):
    def synchronize(self) -> None:
        """Nobody waits."""


def test_group_offload_without_its_wait_before_the_copy_is_a_race(
    sim: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sim, "Stream", Forgetful)
    with pytest.raises(RuntimeError, match=r"sim race: .*is not ordered after write by copy to device on stream"):
        second_call("flux", "group, leaf, stream")


def test_group_offload_without_its_wait_before_freeing_is_a_race(
    sim: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sim, "current_stream", lambda: Forgetful())
    with pytest.raises(RuntimeError, match=r"sim race: memory allocated and freed on stream"):
        second_call("flux", "group, leaf, stream")


def test_block_level_copies_its_root_group_back_even_with_a_stream(sim: ModuleType) -> None:
    resident, streamed = second_call("flux", "resident"), second_call("flux", "group, block, stream")
    assert streamed.counters.moved_back_bytes > resident.counters.moved_back_bytes
    assert streamed.counters.pageable_in_bytes > resident.counters.pageable_in_bytes


def test_block_level_leaves_ltxs_vae_on_the_cpu(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("ltx")
    pipe.enable_group_offload(torch.device("sim"), offload_type="block_level", num_blocks_per_group=1)
    with pytest.raises(RuntimeError, match="at least two devices, sim:0 and cpu"):
        tiny_pipelines.run(pipe, "ltx")


def test_model_offload_onto_the_second_device_leaves_the_first_alone(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("sd15")
    pipe.enable_model_cpu_offload(gpu_id=1)  # the device type is diffusers' own finding
    output = call(pipe, "sd15").output
    assert torch.equal(output, on_cpu("sd15"))
    assert sim.counters(0).num_operations == 0
    assert sim.counters(1).num_operations > 0


@pytest.mark.usefixtures("no_garbage")
def test_a_pipeline_over_capacity_is_out_of_memory_and_runs_again_with_more(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("sd15").to("sim")
    peak_bytes = call(pipe, "sd15").peak_bytes
    sim.set_capacity(peak_bytes - 1)
    with pytest.raises(torch.OutOfMemoryError, match="sim out of memory"):
        tiny_pipelines.run(pipe, "sd15")
    gc.collect()  # the traceback's frames
    sim.set_capacity(peak_bytes)
    assert torch.equal(call(pipe, "sd15").output, on_cpu("sd15"))


def test_a_components_activation_peak_can_be_counted(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("flux").to("sim")
    peaks: list[int] = []

    def start(*_: object) -> None:
        sim.reset_peak_memory_stats()
        peaks.append(-sim.memory_allocated())

    def end(*_: object) -> None:
        peaks[-1] += sim.max_memory_allocated()

    pipe.transformer.register_forward_pre_hook(start)
    pipe.transformer.register_forward_hook(end)
    tiny_pipelines.run(pipe, "flux")
    assert len(peaks) == 2
    assert peaks[0] == peaks[1] > 0
