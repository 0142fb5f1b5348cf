import threading
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch
from accelerate.hooks import CpuOffload
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_base import _func_optionally_disable_offloading
from torch import nn

from tests import tiny_pipelines
from tests.offload.state import output, same, state_of, tensors, values
from tests.offload.tuned_pipelines import held_bytes, planned, resident_bytes
from tests.simgpu.stock_modes import MODES
from vramtune.contract import modules_of
from vramtune.offload import groups
from vramtune.offload.install import install

NAMES = ["flux", "sdxl", "wan"]


# ---------------------------------------------------------------------------------------------------
# In and out


@pytest.mark.parametrize("num_calls", [0, 2])
@pytest.mark.parametrize("place", ["cpu", "sim"])
@pytest.mark.parametrize("name", NAMES)
def test_remove_gives_the_pipeline_back_as_it_was(
    sim: ModuleType, no_garbage: None, name: str, place: str, num_calls: int
) -> None:
    pipe = tiny_pipelines.build(name).to(place)
    state, weights = state_of(pipe), values(pipe)
    held, pinned = held_bytes(), sim.pinned_memory_allocated()
    runtime = install(pipe, planned(name), device="sim")
    assert state_of(pipe) != state
    for _ in range(num_calls):
        output(pipe, name)
    runtime.remove()
    assert state_of(pipe) == state
    assert same(values(pipe), weights)
    assert held_bytes() == held
    assert sim.pinned_memory_allocated() == pinned


@pytest.mark.parametrize("fraction", [0.6, 0.9, 1.0])
def test_a_pipeline_that_lies_on_the_device_already_is_placed_as_planned_where_nothing_else_fits(
    sim: ModuleType, no_garbage: None, expected: dict[str, torch.Tensor], fraction: float
) -> None:
    plan, before_bytes = planned("flux", fraction), held_bytes()
    pipe = tiny_pipelines.build("flux").to("sim")
    sim.set_capacity(max(held_bytes(), before_bytes + plan.budget_bytes))
    with install(pipe, plan, device="sim") as runtime:
        assert held_bytes() - before_bytes == resident_bytes(plan)
        assert torch.equal(output(pipe, "flux"), expected["flux"])
        assert runtime.measured.moved_bytes == plan.estimate.moved_bytes
        sim.set_capacity(sim.DEFAULT_CAPACITY_BYTES)


def test_removing_twice_is_removing_once(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("flux")
    runtime = install(pipe, planned("flux"), device="sim")
    runtime.remove()
    state = state_of(pipe)
    runtime.remove()
    assert state_of(pipe) == state


def test_a_removed_plan_leaves_the_next_plan_alone(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("flux")
    first = install(pipe, planned("flux"), device="sim")
    first.remove()
    with install(pipe, planned("flux", 0.7), device="sim"):
        state = state_of(pipe)
        first.remove()
        assert state_of(pipe) == state


@pytest.mark.parametrize("error", [None, ValueError("mine"), KeyboardInterrupt()], ids=str)
def test_a_with_block_removes_the_plan_however_it_ends(
    sim: ModuleType, no_garbage: None, error: BaseException | None
) -> None:
    pipe = tiny_pipelines.build("flux")
    state, held = state_of(pipe), held_bytes()

    def enter_and_leave() -> None:
        with install(pipe, planned("flux"), device="sim") as runtime:
            output(pipe, "flux")
            assert runtime.measured is not None
            if error is not None:
                raise error

    if error is None:
        enter_and_leave()
    else:
        with pytest.raises(type(error)):
            enter_and_leave()
    assert state_of(pipe) == state
    assert held_bytes() == held


@pytest.mark.parametrize("name", NAMES)
def test_stock_model_offload_is_active_again_after_remove(
    sim: ModuleType, expected: dict[str, torch.Tensor], name: str
) -> None:
    pipe = tiny_pipelines.build(name)
    pipe.enable_model_cpu_offload(device="sim")
    weights, held = values(pipe), held_bytes()
    with install(pipe, planned(name), device="sim"):
        assert torch.equal(output(pipe, name), expected[name])
        assert held_bytes() - held == resident_bytes(planned(name))
    assert {type(module._hf_hook) for module in modules_of(pipe).values()} == {CpuOffload}
    assert len(pipe._all_hooks) == len(modules_of(pipe))
    assert held_bytes() == held
    assert same(values(pipe), weights)
    assert torch.equal(output(pipe, name), expected[name])


@pytest.mark.parametrize("name", NAMES)
def test_between_calls_the_device_holds_what_the_plan_calls_resident(
    sim: ModuleType, no_garbage: None, name: str
) -> None:
    plan, pipe, start = planned(name), tiny_pipelines.build(name), held_bytes()
    with install(pipe, plan, device="sim"):
        assert held_bytes() - start == resident_bytes(plan)
        assert {s.moved_bytes > 0 for s in plan.estimate.stages} >= {True}
        for _ in range(2):
            output(pipe, name)
            assert held_bytes() - start == resident_bytes(plan)


def test_installing_pins_each_group_once(sim: ModuleType, no_garbage: None) -> None:
    pipe = tiny_pipelines.build("sdxl")
    plan, before = planned("sdxl"), sim.pinned_memory_allocated()
    sim.reset()
    with install(pipe, plan, device="sim"):
        assert sim.max_pinned_memory_allocated() == sim.pinned_memory_allocated() > before


# ---------------------------------------------------------------------------------------------------
# What diffusers expects of offloading


def test_hooks_are_the_same_after_every_call(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("sdxl")
    with install(pipe, planned("sdxl"), device="sim"):
        hooks = [module._hf_hook for module in modules_of(pipe).values()]
        for _ in range(2):
            output(pipe, "sdxl")
            assert [module._hf_hook for module in modules_of(pipe).values()] == hooks
        assert all(isinstance(hook, CpuOffload) for hook in hooks)


@pytest.mark.parametrize("index", [0, 1])
def test_the_execution_device_is_the_one_installed_on(sim: ModuleType, index: int) -> None:
    pipe = tiny_pipelines.build("flux")
    with install(pipe, planned("flux"), device="sim", gpu_id=index):
        assert pipe._execution_device == torch.device("sim", index)
        output(pipe, "flux")
        assert pipe._execution_device == torch.device("sim", index)


def test_a_plan_on_the_second_device_takes_nothing_of_the_first(
    sim: ModuleType, expected: dict[str, torch.Tensor]
) -> None:
    pipe, held, other = tiny_pipelines.build("flux"), held_bytes(), sim.memory_allocated(1)
    with install(pipe, planned("flux"), device="sim:1"):
        assert torch.equal(output(pipe, "flux"), expected["flux"])
        assert held_bytes() == held
        assert sim.memory_allocated(1) - other == resident_bytes(planned("flux"))
    held_bytes()
    assert sim.memory_allocated(1) == other


def test_remove_all_hooks_removes_the_plan(sim: ModuleType, no_garbage: None) -> None:
    pipe = tiny_pipelines.build("flux")
    state, held = state_of(pipe), held_bytes()
    runtime = install(pipe, planned("flux"), device="sim")
    output(pipe, "flux")
    pipe.remove_all_hooks()
    assert state_of(pipe) == state
    assert held_bytes() == held
    runtime.remove()
    assert state_of(pipe) == state


def test_maybe_free_model_hooks_frees_all_but_what_is_resident(
    sim: ModuleType, no_garbage: None, expected: dict[str, torch.Tensor]
) -> None:
    pipe, start = tiny_pipelines.build("flux"), held_bytes()
    with install(pipe, planned("flux"), device="sim"):
        pipe.text_encoder_2._hf_hook.pre_forward(pipe.text_encoder_2)
        assert held_bytes() - start > resident_bytes(planned("flux"))
        pipe.maybe_free_model_hooks()
        assert held_bytes() - start == resident_bytes(planned("flux"))
        assert torch.equal(output(pipe, "flux"), expected["flux"])


@pytest.mark.parametrize("device", ["sim", "sim:1", "cpu"])
def test_to_a_device_warns_and_moves_nothing(sim: ModuleType, expected: dict[str, torch.Tensor], device: str) -> None:
    pipe = tiny_pipelines.build("flux")
    with install(pipe, planned("flux"), device="sim"):
        state, held = state_of(pipe), held_bytes()
        with pytest.warns(UserWarning, match="vramtune decides where its weights are"):
            assert pipe.to(device) is pipe
        assert state_of(pipe) == state
        assert held_bytes() == held
        assert torch.equal(output(pipe, "flux"), expected["flux"])


def test_to_a_device_and_a_dtype_casts_and_moves_nothing(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("flux")
    with install(pipe, planned("flux"), device="sim"):
        held = held_bytes()
        with pytest.warns(UserWarning, match="changes no device"):
            pipe.to("sim", torch.bfloat16)
        assert {t.dtype for _, t in tensors(pipe) if t.is_floating_point()} == {torch.bfloat16}
        assert held_bytes() <= held


def test_enable_model_cpu_offload_keeps_the_plan(
    sim: ModuleType, expected: dict[str, torch.Tensor], no_garbage: None
) -> None:
    pipe, start = tiny_pipelines.build("flux"), held_bytes()
    with install(pipe, planned("flux"), device="sim"):
        pipe.enable_model_cpu_offload()
        assert held_bytes() - start == resident_bytes(planned("flux"))
        assert torch.equal(output(pipe, "flux"), expected["flux"])
        assert held_bytes() - start == resident_bytes(planned("flux"))


@pytest.mark.parametrize("name", NAMES)
def test_a_lora_loader_takes_the_hooks_off_and_gets_the_plan_back(sim: ModuleType, no_garbage: None, name: str) -> None:
    def change(pipe: DiffusionPipeline) -> None:
        for module in modules_of(pipe).values():
            for part in module.modules():
                if type(part) is nn.Linear:
                    with torch.no_grad():
                        part.weight.add_(0.0625)

    untuned = tiny_pipelines.build(name)
    change(untuned)
    expected = output(untuned.to("sim"), name)
    del untuned
    pipe, start = tiny_pipelines.build(name), held_bytes()
    state = state_of(pipe)
    with install(pipe, planned(name), device="sim"):
        output(pipe, name)
        assert _func_optionally_disable_offloading(pipe) == (True, False, False)
        assert {t.device.type for _, t in tensors(pipe)} == {"cpu"}
        assert held_bytes() == start
        change(pipe)
        pipe.enable_model_cpu_offload()
        assert held_bytes() - start == resident_bytes(planned(name))
        assert torch.equal(output(pipe, name), expected)
        assert held_bytes() - start == resident_bytes(planned(name))
    assert state_of(pipe) == state


def test_modules_added_while_the_hooks_are_off_run_on_the_device(sim: ModuleType) -> None:
    class Adapted(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.down, self.up = base, nn.Linear(32, 2), nn.Linear(2, base.out_features)
            for parameter in (*self.down.parameters(), *self.up.parameters()):
                nn.init.constant_(parameter, 0.125)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + self.up(self.down(x))

    def adapt(pipe: DiffusionPipeline) -> None:
        for block in pipe.transformer.transformer_blocks:
            block.attn.to_q = Adapted(block.attn.to_q)

    untuned = tiny_pipelines.build("flux")
    adapt(untuned)
    expected = output(untuned.to("sim"), "flux")
    pipe = tiny_pipelines.build("flux")
    with install(pipe, planned("flux"), device="sim"):
        output(pipe, "flux")
        _func_optionally_disable_offloading(pipe)
        adapt(pipe)
        pipe.enable_model_cpu_offload()
        assert torch.equal(output(pipe, "flux"), expected)


def test_a_tuned_pipeline_is_saved_like_an_untuned_one(sim: ModuleType, tmp_path: Path) -> None:
    pipe = tiny_pipelines.build("sdxl")
    tiny_pipelines.build("sdxl").save_pretrained(tmp_path / "untuned")
    with install(pipe, planned("sdxl"), device="sim"):
        output(pipe, "sdxl")
        pipe.save_pretrained(tmp_path / "tuned")
        assert torch.equal(pipe.unet.state_dict()["conv_in.weight"].cpu(), values(pipe)["unet.conv_in.weight"])
    index = "model_index.json"
    assert (tmp_path / "tuned" / index).read_bytes() == (tmp_path / "untuned" / index).read_bytes()
    for component in modules_of(pipe):
        saved, known = (
            {file.name: file.read_bytes() for file in (tmp_path / folder / component).glob("*.safetensors")}
            for folder in ("tuned", "untuned")
        )
        assert saved == known != {}


def test_group_offload_refuses_a_tuned_pipeline(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("flux")
    with install(pipe, planned("flux"), device="sim"), pytest.raises(ValueError, match="group offloading"):
        MODES["group, leaf"](pipe)


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")
def test_sdxl_upcasts_its_half_vae_and_puts_it_back(sim: ModuleType, no_garbage: None) -> None:
    def half(pipe: DiffusionPipeline) -> DiffusionPipeline:
        pipe.vae.to(torch.float16)
        return pipe

    untuned = half(tiny_pipelines.build("sdxl"))
    assert untuned.vae.config.force_upcast
    expected = output(untuned.to("sim"), "sdxl")
    del untuned
    start, pipe = held_bytes(), half(tiny_pipelines.build("sdxl"))
    state, weights = state_of(pipe), values(pipe)
    with install(pipe, planned("sdxl"), device="sim"):
        rests: list[int] = []
        pinned: list[int] = []
        for _ in range(3):
            sim.reset()
            image = tiny_pipelines.run(pipe, "sdxl")
            assert sim.counters().moved_back_bytes == 0
            assert torch.equal(image.cpu(), expected)
            del image
            output(pipe, "sdxl")  # and takes its timesteps off the device
            assert {p.dtype for p in pipe.vae.parameters()} == {torch.float16}
            rests.append(held_bytes() - start)
            pinned.append(sim.pinned_memory_allocated())
        assert max(rests) <= resident_bytes(planned("sdxl"))
        assert rests[1] == rests[2]
        assert pinned[1] == pinned[2]
    assert state_of(pipe) == state
    assert same(values(pipe), weights)
    assert held_bytes() == start


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")
def test_a_cast_in_each_call_locks_pages_in_the_first_alone(sim: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_pipelines.build("sdxl")
    pipe.vae.to(torch.float16)
    locking = mock.Mock(wraps=groups.pinned_buffer)
    monkeypatch.setattr(groups, "pinned_buffer", locking)
    num_locked = []
    with install(pipe, planned("sdxl", 0.3), device="sim"):
        for _ in range(3):
            output(pipe, "sdxl")
            num_locked.append(locking.call_count)
            locking.reset_mock()
    assert num_locked[0] > 0
    assert num_locked[1:] == [0, 0]


def test_a_second_thread_waits_for_the_first(sim: ModuleType, expected: dict[str, torch.Tensor]) -> None:
    pipe, outputs = tiny_pipelines.build("flux"), []
    pipe.set_progress_bar_config(disable=True)
    with install(pipe, planned("flux"), device="sim"):
        threads = [threading.Thread(target=lambda: outputs.append(output(pipe, "flux"))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(outputs) == 2
    assert all(torch.equal(one, expected["flux"]) for one in outputs)
