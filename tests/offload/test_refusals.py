from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline

from tests import tiny_pipelines
from tests.offload.state import output, same, state_of, values
from tests.offload.tuned_pipelines import held_bytes, planned, resident_bytes
from tests.simgpu.stock_modes import MODES
from vramtune.errors import NoAcceleratorError, UsageError
from vramtune.offload import device
from vramtune.offload.install import install


def refused(pipe: DiffusionPipeline, plan: Any, match: str, error: type = UsageError, **where: Any) -> None:
    state, weights, held = state_of(pipe), values(pipe), held_bytes()
    with pytest.raises(error, match=match):
        install(pipe, plan, **where)
    assert state_of(pipe) == state
    assert same(values(pipe), weights)
    assert held_bytes() == held


@pytest.mark.parametrize(
    ("where", "match", "error"),
    [
        ({"device": "cpu"}, "The CPU was asked for", UsageError),
        ({"device": "sim:1", "gpu_id": 0}, "Both gpu_id=0 and an index in device='sim:1'", UsageError),
        ({"device": "sim:7"}, "sim:7 was asked for; this machine has 2", UsageError),
        ({"device": "sim", "gpu_id": 2}, "sim:2 was asked for; this machine has 2", UsageError),
        ({"gpu_id": -1}, "sim:-1 was asked for; this machine has 2", UsageError),
        ({"device": "toaster"}, "device='toaster' is not a device PyTorch knows", UsageError),
        ({"device": "xpu"}, "'xpu' was asked for; PyTorch finds only 'sim' on this machine", NoAcceleratorError),
    ],
)
def test_a_device_that_is_absent_or_no_gpu_is_refused(
    sim: ModuleType, where: dict[str, Any], match: str, error: type
) -> None:
    refused(tiny_pipelines.build("flux"), planned("flux"), match, error, **where)


def test_apple_gpus_are_refused(sim: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned("flux")
    monkeypatch.setattr(device, "_accelerator", lambda: torch.device("mps", 0))
    refused(tiny_pipelines.build("flux"), plan, "Apple's GPUs compute in the host's own memory")


def test_a_plan_for_another_pipeline_class_is_refused(sim: ModuleType) -> None:
    refused(
        tiny_pipelines.build("sdxl"),
        planned("flux"),
        "This plan is for a FluxPipeline; the pipeline is a StableDiffusionXLPipeline",
    )


def test_a_plan_for_another_size_is_refused_and_the_group_named(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("flux")
    pipe.text_encoder_2 = tiny_pipelines.t5(64)
    refused(pipe, planned("flux"), r"text_encoder_2's group .* has .* where the plan has")


def test_a_plan_with_more_blocks_is_refused_and_a_missing_one_named(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("flux")
    pipe.transformer = tiny_pipelines.flux(num_layers=1).transformer
    refused(pipe, planned("flux"), r"transformer has no module 'transformer_blocks\.1")


def test_a_plan_for_a_component_that_is_missing_is_refused(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("flux")
    pipe.text_encoder_2 = None
    refused(pipe, planned("flux"), "the pipeline has no component 'text_encoder_2'")


def test_a_pipeline_of_another_dtype_than_planned_is_refused(sim: ModuleType) -> None:
    refused(tiny_pipelines.build("flux").to(torch.bfloat16), planned("flux"), "does not fit the pipeline")


def test_a_pipeline_under_group_offload_is_refused(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("flux")
    MODES["group, leaf"](pipe)
    refused(pipe, planned("flux"), "group offloading")


def test_a_pipeline_under_sequential_offload_is_refused(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("flux")
    MODES["sequential offload"](pipe)
    with pytest.raises(UsageError, match="sequential CPU offload"):
        install(pipe, planned("flux"), device="sim")
    assert type(pipe) is FluxPipeline
    assert torch.isfinite(output(pipe, "flux")).all()


def test_a_pipeline_with_a_device_map_is_refused(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("flux")
    pipe.hf_device_map = {"transformer": 0, "vae": "cpu"}
    refused(pipe, planned("flux"), "reset_device_map")


def test_a_pipeline_with_a_plan_is_refused(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("flux")
    with install(pipe, planned("flux"), device="sim"):
        refused(pipe, planned("flux", 0.7), "already installed on this pipeline")


def test_weights_on_the_meta_device_are_refused(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("flux")
    pipe.text_encoder = pipe.text_encoder.to("meta")
    with pytest.raises(UsageError, match=r"'text_encoder' is on the meta device"):
        install(pipe, planned("flux"), device="sim")
    assert type(pipe) is FluxPipeline
    assert not hasattr(pipe.transformer, "_hf_hook")


def test_a_weight_that_two_components_share_is_refused(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("sdxl")
    pipe.text_encoder_2.text_model.embeddings.token_embedding.weight = (
        pipe.text_encoder.embeddings.token_embedding.weight
    )
    refused(pipe, planned("sdxl"), "'text_encoder' and 'text_encoder_2' share a weight")


def test_out_of_memory_while_installing_leaves_the_pipeline_as_it_was(sim: ModuleType) -> None:
    pipe, plan = tiny_pipelines.build("flux"), planned("flux", 1.0)
    pipe._exclude_from_cpu_offload = [*pipe.components]  # or its weights would give way
    sim.set_capacity(held_bytes() + resident_bytes(plan) // 2)
    refused(pipe, plan, "memory", torch.OutOfMemoryError)


def test_weights_that_find_no_memory_while_installing_give_way(sim: ModuleType, no_garbage: None) -> None:
    pipe, plan = tiny_pipelines.build("flux"), planned("flux", 1.0)
    before_bytes = held_bytes()
    sim.set_capacity(before_bytes + resident_bytes(plan) // 2)
    with install(pipe, plan, device="sim"):
        assert 0 < held_bytes() - before_bytes <= resident_bytes(plan) // 2
    assert held_bytes() == before_bytes


@pytest.mark.parametrize(("num_differences", "rest"), [(5, ""), (6, "; and 1 more"), (9, "; and 4 more")])
def test_of_many_differences_five_are_listed_and_the_rest_counted(
    sim: ModuleType, num_differences: int, rest: str
) -> None:
    plan = planned("flux")
    placement = max(plan.placements, key=lambda placement: len(placement.groups))
    groups = [
        replace(group, weight_bytes=group.weight_bytes + 512 * (place < num_differences))
        for place, group in enumerate(placement.groups)
    ]
    others = (p for p in plan.placements if p is not placement)
    plan = replace(plan, placements=(replace(placement, groups=tuple(groups)), *others))
    refused(tiny_pipelines.build("flux"), plan, rf"fit the pipeline: [^;]+(; [^;]+ where [^;]+){{4}}{rest}\. Make")
