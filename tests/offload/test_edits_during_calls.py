"""Weights that change while a call runs."""

from dataclasses import replace
from types import ModuleType

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn
from transformers import CLIPTextModel

from tests import tiny_pipelines
from tests.offload.state import output
from tests.offload.test_edits import Edit, rebound, untuned
from tests.offload.tuned_pipelines import held_bytes, planned, profiled, resident_bytes, tuned
from vramtune.offload.install import install
from vramtune.schema import Plan

# ---------------------------------------------------------------------------------------------------
# In the middle of a call


def exchanged(module: nn.Module, path: str) -> None:
    owner, _, name = path.rpartition(".")
    weight = module.get_parameter(path)
    setattr(module.get_submodule(owner), name, nn.Parameter(weight.detach() * 1.5))


def without_bias(module: nn.Module, path: str) -> None:
    module.get_submodule(path.rpartition(".")[0]).bias = None


def half_kept(plan: Plan, *calls: str) -> Plan:
    """That plan, with half of the transformer's groups kept in the stages of these calls, and none in the others."""
    stays = [any(call in stage.calls for call in calls) for stage in plan.stages]
    placements = [
        replace(p, kept=tuple(len(p.groups) // 2 if stay else 0 for stay in stays))
        if p.component == "transformer"
        else p
        for p in plan.placements
    ]
    return replace(plan, placements=tuple(placements))


def transformer_weight(pipe: DiffusionPipeline, plan: Plan, *, kept: bool) -> str:
    """The path of a linear layer's weight in the first group after the root that has one, or in the last."""
    (placement,) = (p for p in plan.placements if p.component == "transformer")
    groups = placement.groups[1:] if kept else placement.groups[:0:-1]
    linear = (
        ".".join(filter(None, (path, inner, "weight")))
        for group in groups
        for path in group.modules
        for inner, part in pipe.transformer.get_submodule(path).named_modules()
        if type(part) is nn.Linear
    )
    return next(linear)


@pytest.mark.parametrize("elsewhere", [True, False], ids=["with a stage between", "within a stage"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "streamed"])
@pytest.mark.parametrize("edit", [rebound, exchanged, without_bias], ids=lambda edit: edit.__name__)
def test_a_weight_edited_during_a_call_counts_from_the_next_stage_on(
    sim: ModuleType, no_garbage: None, edit: Edit, kept: bool, elsewhere: bool
) -> None:
    """Where the order changes: a stage that keeps the weights too, while copies of them are on their way."""
    plan = half_kept(planned("flux", 0.4, copy_to_compute=5), "transformer", "text_encoder_2")
    path = transformer_weight(tiny_pipelines.build("flux"), plan, kept=kept)

    def edited(pipe: DiffusionPipeline, step: int, timestep: object, kwargs: dict) -> dict:
        if step == (0 if elsewhere else 1):
            edit(pipe.transformer, path)
        if elsewhere:
            pipe.text_encoder_2(torch.ones(1, 4, dtype=torch.int64, device="sim"))
        return kwargs

    untuned = tiny_pipelines.build("flux").to("sim")
    expected = [output(untuned, "flux", callback_on_step_end=edited), output(untuned, "flux")]
    del untuned
    profiled("flux", copy_to_compute=5)
    start, pipe = held_bytes(), tiny_pipelines.build("flux")
    with install(pipe, plan, device="sim"):
        assert torch.equal(output(pipe, "flux", callback_on_step_end=edited), expected[0])
        assert held_bytes() - start == resident_bytes(plan)
        assert torch.equal(output(pipe, "flux"), expected[1])
        assert held_bytes() - start == resident_bytes(plan)


def written(module: nn.Module, path: str) -> None:
    with torch.no_grad():
        module.get_parameter(path).mul_(1.5)


def loaded(module: nn.Module, path: str) -> None:
    module.load_state_dict({path: module.get_parameter(path).detach().cpu() * 1.5}, strict=False)


def written_by_an_alias(module: nn.Module, path: str) -> None:
    module.get_parameter(path).detach().view(-1)[:].mul_(1.5)


def written_in_inference_mode(module: nn.Module, path: str) -> None:
    with torch.inference_mode():
        module.get_parameter(path).mul_(1.5)


COUNTED: list[Edit] = [
    written,
    loaded,
    written_by_an_alias,
    written_in_inference_mode,
    rebound,
    exchanged,
    without_bias,
]


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "streamed"])
@pytest.mark.parametrize("edit", COUNTED, ids=lambda edit: edit.__name__)
def test_a_weight_written_in_a_callback_counts_from_the_next_step_on(
    sim: ModuleType, no_garbage: None, edit: Edit, kept: bool
) -> None:
    """While copies of it are on their way, and after they have come."""
    plan = half_kept(planned("flux", 0.4, copy_to_compute=5), "transformer")
    path = transformer_weight(tiny_pipelines.build("flux"), plan, kept=kept)

    def edited(pipe: DiffusionPipeline, step: int, timestep: object, kwargs: dict) -> dict:
        if step == 0:
            edit(pipe.transformer, path)
        return kwargs

    untuned = tiny_pipelines.build("flux").to("sim")
    expected = [output(untuned, "flux", callback_on_step_end=edited), output(untuned, "flux")]
    del untuned
    profiled("flux", copy_to_compute=5)
    pipe = tiny_pipelines.build("flux")
    with install(pipe, plan, device="sim"):
        assert torch.equal(output(pipe, "flux", callback_on_step_end=edited), expected[0])
        assert torch.equal(output(pipe, "flux"), expected[1])


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "streamed"])
def test_a_write_through_data_in_a_callback_is_not_counted_and_one_between_calls_is(
    sim: ModuleType, no_garbage: None, kept: bool
) -> None:
    """PyTorch does not count it. A kept weight's copy is written to, and let go at the stage's end; of a streamed one
    the master, which counts from the next copy on, and is right at the next call.
    """
    plan = half_kept(planned("flux", 0.4, copy_to_compute=5), "transformer")
    path = transformer_weight(tiny_pipelines.build("flux"), plan, kept=kept)

    def write(pipe: DiffusionPipeline) -> None:
        pipe.transformer.get_parameter(path).data.mul_(1.5)

    def in_callback(pipe: DiffusionPipeline, step: int, timestep: object, kwargs: dict) -> dict:
        if step == 0:
            write(pipe)
        return kwargs

    once = untuned("flux", write)
    twice = untuned("flux", lambda pipe: (write(pipe), write(pipe)))
    never = untuned("flux", lambda pipe: None)
    profiled("flux", copy_to_compute=5)
    pipe = tiny_pipelines.build("flux")
    with install(pipe, plan, device="sim"):
        output(pipe, "flux", callback_on_step_end=in_callback)
        assert torch.equal(output(pipe, "flux"), never if kept else once)
        write(pipe)
        assert torch.equal(output(pipe, "flux"), once if kept else twice)


def test_weights_may_be_written_as_soon_as_a_call_has_failed(sim: ModuleType, no_garbage: None) -> None:
    def write(pipe: DiffusionPipeline) -> None:
        with torch.no_grad():
            for parameter in pipe.transformer.parameters():
                parameter.mul_(1.25)

    def interrupt(*_: object) -> dict:
        raise KeyboardInterrupt

    expected = untuned("flux", write)
    with tuned("flux", 0.4, copy_to_compute=5) as (pipe, _):
        with pytest.raises(KeyboardInterrupt):
            tiny_pipelines.run(pipe, "flux", callback_on_step_end=interrupt)
        write(pipe)  # while copies that nobody needs any more would still be on their way
        assert torch.equal(output(pipe, "flux"), expected)


def test_a_component_put_in_after_install_is_on_the_device_only_while_it_runs(
    sim: ModuleType, no_garbage: None
) -> None:
    """No plan knows it: its weights come when it runs, and go."""
    tokens = torch.ones(1, 4, dtype=torch.int64)
    added = CLIPTextModel(tiny_pipelines.clip_config()).eval()
    with torch.no_grad():
        expected = added(tokens).last_hidden_state
    with tuned("flux", 0.5) as (pipe, _), torch.no_grad():
        output(pipe, "flux")
        pipe.image_encoder = added
        output(pipe, "flux")
        rest = held_bytes()
        states = pipe.image_encoder(tokens).last_hidden_state
        assert states.device.type == "sim"
        assert torch.equal(states.cpu(), expected)
        del states
        assert held_bytes() == rest
    assert {p.device.type for p in added.parameters()} == {"cpu"}
    assert "forward" not in vars(added)
