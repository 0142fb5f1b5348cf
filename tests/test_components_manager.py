"""`OffloadStrategy` under diffusers' `ComponentsManager`, on the simulated accelerator, beside diffusers' own."""

import gc

import pytest
import torch
from diffusers import ComponentsManager, FluxTransformer2DModel
from diffusers.modular_pipelines.components_manager import AutoOffloadStrategy

import vramtune
from tests import tiny_modular_pipelines, tiny_pipelines
from tests.offload.tuned_pipelines import held_bytes
from tests.simgpu.prediction import sim_device
from tests.tiny_modular_pipelines import CALL, run
from vramtune.units import GIB, MIB

SETTINGS = {**CALL["flux"], "height": 64, "width": 64}


def build(manager=None):
    """FLUX.1 with a large encoder beside a large transformer, so that the allocator's segments of 20 MiB are not all."""
    pipe = tiny_modular_pipelines.build("flux", manager)
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=64,
        num_attention_heads=5,
        joint_attention_dim=768,
        pooled_projection_dim=32,
        axes_dims_rope=(16, 24, 24),
    )
    pipe.update_components(transformer=transformer.eval(), text_encoder_2=tiny_pipelines.t5(768))
    return pipe


@pytest.fixture(scope="module")
def profile(built_sim):
    return vramtune.profile(build(), gpu=sim_device(), call_kwargs=SETTINGS, progress=False)


@pytest.fixture
def cap_bytes(profile):
    """Enough for all weights, and one MiB for activations."""
    return MIB + sum(component.weights.allocated_bytes for component in profile.components)


def called_twice(strategy, sim):
    """The second of two calls under a manager: its output, and the most that was on the device."""
    manager = ComponentsManager()
    pipe = build(manager)
    gc.collect()
    base = sim.memory_allocated()
    manager.enable_auto_cpu_offload("sim", offload_strategy=strategy)
    run(pipe, "flux", **SETTINGS)
    sim.reset()
    output = run(pipe, "flux", **SETTINGS).cpu()
    sim.synchronize()
    peak_bytes = sim.max_memory_allocated() - base
    manager.disable_auto_cpu_offload()
    return output, peak_bytes


def test_it_keeps_its_cap_where_diffusers_own_exceeds_it(sim, no_garbage, profile, cap_bytes):
    wanted = run(build().to("sim"), "flux", **SETTINGS).cpu()
    gc.collect()
    free = sim.mem_get_info()[0]
    stock = AutoOffloadStrategy(memory_reserve_margin=free - cap_bytes)
    ours = vramtune.OffloadStrategy(profile, cap_bytes / GIB)
    stock_output, stock_peak = called_twice(stock, sim)
    our_output, our_peak = called_twice(ours, sim)
    assert torch.equal(our_output, wanted)
    assert torch.equal(stock_output, wanted)
    assert our_peak <= cap_bytes < stock_peak


def test_on_a_device_of_that_size_it_runs_where_diffusers_own_is_out_of_memory(sim, no_garbage, profile, cap_bytes):
    sim.set_capacity(held_bytes() + cap_bytes)
    called_twice(vramtune.OffloadStrategy(profile, cap_bytes / GIB), sim)
    with pytest.raises(torch.OutOfMemoryError):
        called_twice(AutoOffloadStrategy(memory_reserve_margin=0), sim)


def test_what_fits_stays_for_the_next_call(sim, no_garbage, profile):
    manager = ComponentsManager()
    pipe = build(manager)
    manager.enable_auto_cpu_offload("sim", offload_strategy=vramtune.OffloadStrategy(profile, 1))
    run(pipe, "flux", **SETTINGS)
    names = [name for name, c in pipe.components.items() if isinstance(c, torch.nn.Module)]
    assert {getattr(pipe, name).device.type for name in names} == {"sim"}
    manager.disable_auto_cpu_offload()
    assert {getattr(pipe, name).device.type for name in names} == {"cpu"}
