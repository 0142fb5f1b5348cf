"""Exclusions, tiling, inputs, own methods, and calls by hand."""

import functools
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from tests import tiny_pipelines
from tests.offload.state import output, tensors
from tests.offload.tuned_pipelines import held_bytes, planned, resident_bytes
from vramtune.offload.install import install
from vramtune.schema import Placement

# ---------------------------------------------------------------------------------------------------
# What a pipeline or a plan asks for


def test_a_component_that_the_pipeline_excludes_from_offload_stays_on_the_device(
    sim: ModuleType, expected: dict[str, torch.Tensor]
) -> None:
    pipe = tiny_pipelines.build("flux")
    pipe._exclude_from_cpu_offload = ["text_encoder", "image_encoder"]
    with install(pipe, planned("flux", 0.4), device="sim"):
        for _ in range(2):
            assert {p.device.type for p in pipe.text_encoder.parameters()} == {"sim"}
            assert torch.equal(output(pipe, "flux"), expected["flux"])
        pipe.image_encoder = tiny_pipelines.t5()
        output(pipe, "flux")
        assert {p.device.type for p in pipe.image_encoder.parameters()} == {"sim"}
    assert {t.device.type for _, t in tensors(pipe)} == {"cpu"}


@pytest.mark.parametrize("was_tiled", [True, False])
@pytest.mark.parametrize("permissions", [(), ("vae_tiling",)])
def test_tiling_is_on_under_a_plan_that_may_use_it_and_as_before_after_remove(
    sim: ModuleType, was_tiled: bool, permissions: tuple[str, ...]
) -> None:
    pipe = tiny_pipelines.build("flux")
    pipe.vae.use_tiling = was_tiled
    with install(pipe, replace(planned("flux"), permissions=permissions), device="sim"):
        assert pipe.vae.use_tiling == (was_tiled or bool(permissions))
    assert pipe.vae.use_tiling == was_tiled


@pytest.mark.parametrize("fraction", [0.4, 1.0])
def test_evicted_memory_is_given_back_to_the_device(
    sim: ModuleType, no_garbage: None, monkeypatch: pytest.MonkeyPatch, fraction: float
) -> None:
    """The simulated allocator keeps nothing; others give back what they cache when they are asked."""
    allocated: list[int] = []
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: allocated.append(sim.memory_allocated()))
    start, pipe, plan = held_bytes(), tiny_pipelines.build("flux"), planned("flux", fraction)
    rest = start + resident_bytes(plan)
    with install(pipe, plan, device="sim"):
        assert allocated[-1] == rest
        allocated.clear()
        output(pipe, "flux")
        assert len(allocated) > len(plan.stages)
        assert held_bytes() == rest
    assert allocated[-1] == start


def test_a_module_called_by_hand_is_on_the_device_only_until_hooks_are_freed(sim: ModuleType, no_garbage: None) -> None:
    """Without its component's call, whose end would say that it is done."""
    pipe, start = tiny_pipelines.build("flux"), held_bytes()
    block, states = pipe.text_encoder_2.encoder.block[1], torch.ones(1, 4, 32)
    with torch.no_grad():
        expected = block(states)[0]
    with install(pipe, planned("flux", 0.4), device="sim") as runtime, torch.no_grad():
        for _ in range(2):
            assert torch.equal(block(states.to("sim"))[0].cpu(), expected)
            pipe.maybe_free_model_hooks()
            assert {p.device.type for p in block.parameters()} == {"cpu"}
            assert held_bytes() - start == resident_bytes(planned("flux", 0.4))
        block(states.to("sim"))
    assert {p.device.type for p in block.parameters()} == {"cpu"}
    assert held_bytes() == start
    assert runtime.measured is None


def test_a_component_cast_while_another_one_computes_changes_no_output(
    sim: ModuleType, expected: dict[str, torch.Tensor]
) -> None:
    pipe = tiny_pipelines.build("flux")
    with install(pipe, planned("flux", 0.4), device="sim"):
        (placement,) = (p for p in planned("flux", 0.4).placements if p.component == "transformer")
        module = pipe.transformer.get_submodule(placement.groups[-1].modules[0])
        handle = module.register_forward_pre_hook(lambda *_: pipe.vae.to(torch.float32) and None)
        assert torch.equal(output(pipe, "flux"), expected["flux"])
        handle.remove()


@pytest.mark.parametrize("name", ["wan", "sdxl"])
def test_a_root_that_is_not_resident_comes_when_its_component_starts(
    sim: ModuleType, expected: dict[str, torch.Tensor], name: str
) -> None:
    def only_while_active(placement: Placement) -> Placement:
        kept = (k if active else 0 for k, active in zip(placement.kept, placement.active, strict=True))
        return replace(placement, kept=tuple(kept))

    plan = planned(name)
    plan = replace(plan, placements=tuple(map(only_while_active, plan.placements)))
    assert sum(placement.groups[0].weight_bytes for placement in plan.placements) > 0
    assert resident_bytes(plan) == 0
    pipe, start = tiny_pipelines.build(name), held_bytes()
    with install(pipe, plan, device="sim"):
        for _ in range(2):
            assert torch.equal(output(pipe, name), expected[name])
            assert held_bytes() == start


def test_inputs_of_a_component_are_brought_to_the_device(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("flux")
    latents = torch.linspace(-1, 1, pipe.vae.config.latent_channels * 64).reshape(1, -1, 8, 8)
    with torch.no_grad():
        expected = pipe.vae.decode(latents).sample
        with install(pipe, planned("flux"), device="sim"):
            image = pipe.vae.decode(latents).sample
            assert image.device.type == "sim"
            assert torch.equal(image.cpu(), expected)


def test_a_method_on_a_components_instance_is_back_after_remove(
    sim: ModuleType, expected: dict[str, torch.Tensor]
) -> None:
    pipe = tiny_pipelines.build("flux")
    own = pipe.vae.decode = functools.partial(pipe.vae.decode)
    with install(pipe, planned("flux"), device="sim"):
        assert vars(pipe.vae)["decode"] is not own
        assert torch.equal(output(pipe, "flux"), expected["flux"])
    assert vars(pipe.vae)["decode"] is own


def test_a_hook_called_by_hand_brings_the_components_root(sim: ModuleType) -> None:
    """As diffusers does before it uses a component otherwise than by its methods."""
    plan = planned("wan")
    active_only = (
        replace(p, kept=tuple(k if a else 0 for k, a in zip(p.kept, p.active, strict=True))) for p in plan.placements
    )
    pipe = tiny_pipelines.build("wan")
    with install(pipe, replace(plan, placements=tuple(active_only)), device="sim"):
        assert pipe.transformer.scale_shift_table.device.type == "cpu"
        pipe.transformer._hf_hook.pre_forward(pipe.transformer)
        assert pipe.transformer.scale_shift_table.device.type == "sim"
        pipe.maybe_free_model_hooks()
        assert pipe.transformer.scale_shift_table.device.type == "cpu"
