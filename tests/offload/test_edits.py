import copy
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from tests import tiny_pipelines
from tests.offload.state import output, same, values
from tests.offload.tuned_pipelines import held_bytes, planned, resident_bytes
from vramtune.contract import modules_of
from vramtune.offload.install import install
from vramtune.schema import Plan

Edit = Callable[[nn.Module, str], None]


def in_place(module: nn.Module, path: str) -> None:
    with torch.no_grad():
        module.get_parameter(path).mul_(1.5)


def data_in_place(module: nn.Module, path: str) -> None:
    weight = module.get_parameter(path)
    weight.data += 0.25


def rebound(module: nn.Module, path: str) -> None:
    weight = module.get_parameter(path)
    weight.data = weight.data * 1.5


def rebound_from_the_host(module: nn.Module, path: str) -> None:
    weight = module.get_parameter(path)
    weight.data = torch.full(weight.shape, 0.125)


def rebound_at_another_dtype_and_back(module: nn.Module, path: str) -> None:
    weight = module.get_parameter(path)
    weight.data = weight.data.to(torch.bfloat16)
    weight.data = weight.data.to(torch.float32)


def replaced_parameter(module: nn.Module, path: str) -> None:
    owner, _, name = path.rpartition(".")
    weight = module.get_parameter(path)
    setattr(module.get_submodule(owner), name, nn.Parameter(weight.detach().cpu() * 1.5))


def replaced_module(module: nn.Module, path: str) -> None:
    owner, _, _ = path.rpartition(".")
    old = module.get_submodule(owner)
    new = nn.Linear(old.in_features, old.out_features, bias=old.bias is not None)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.fill_(0.03125)
    module.set_submodule(owner, new)


def state_loaded(module: nn.Module, path: str) -> None:
    module.load_state_dict({name: tensor.cpu() * 1.5 for name, tensor in module.state_dict().items()})


def state_assigned(module: nn.Module, path: str) -> None:
    state = {name: tensor.cpu() * 1.5 for name, tensor in module.state_dict().items()}
    module.load_state_dict(state, assign=True)


EDITS: list[Edit] = [
    in_place,
    data_in_place,
    rebound,
    rebound_from_the_host,
    rebound_at_another_dtype_and_back,
    replaced_parameter,
    replaced_module,
    state_loaded,
    state_assigned,
]


def linear_weight(pipe: DiffusionPipeline, plan: Plan, *, moving: bool) -> tuple[str, str]:
    """Component and path of a linear layer's weight in a group that moves, or in one that never does."""
    for placement in plan.placements:
        staying = min(placement.kept)
        groups = placement.groups[max(staying, 1) :] if moving else placement.groups[1:staying]
        module = getattr(pipe, placement.component)
        for root in (path for group in groups for path in group.modules):
            for path, part in module.get_submodule(root).named_modules():
                if type(part) is nn.Linear:
                    return placement.component, ".".join(filter(None, (root, path, "weight")))
    raise LookupError("the plan has no such group")


def untuned(name: str, edit: Callable[[DiffusionPipeline], object]) -> torch.Tensor:
    pipe = tiny_pipelines.build(name)
    edit(pipe)
    return output(pipe.to("sim"), name)


@pytest.mark.parametrize("moving", [True, False], ids=["moving", "resident"])
@pytest.mark.parametrize(
    ("name", "edit"),
    [
        *(("flux", edit) for edit in EDITS),
        *((name, edit) for name in ("sdxl", "wan") for edit in (in_place, rebound, replaced_module)),
    ],
)
def test_an_edited_weight_reaches_the_next_call(sim: ModuleType, name: str, edit: Edit, moving: bool) -> None:
    pipe, plan = tiny_pipelines.build(name), planned(name)
    component, path = linear_weight(pipe, plan, moving=moving)
    expected = untuned(name, lambda other: edit(getattr(other, component), path))
    with install(pipe, plan, device="sim"):
        before = output(pipe, name)
        edit(getattr(pipe, component), path)
        after = output(pipe, name)
        again = output(pipe, name)
        edited = values(pipe)
    assert torch.equal(after, expected)
    assert torch.equal(again, expected)
    assert edit is rebound_at_another_dtype_and_back or not torch.equal(before, after)
    assert same(values(pipe), edited)


@pytest.mark.parametrize("edit", [in_place, rebound, replaced_parameter], ids=lambda edit: edit.__name__)
def test_an_edit_before_the_first_call_reaches_it(sim: ModuleType, edit: Edit) -> None:
    pipe, plan = tiny_pipelines.build("flux"), planned("flux")
    component, path = linear_weight(pipe, plan, moving=True)
    with install(pipe, plan, device="sim"):
        edit(getattr(pipe, component), path)
        assert torch.equal(output(pipe, "flux"), untuned("flux", lambda other: edit(getattr(other, component), path)))


@pytest.mark.parametrize("moving", [True, False], ids=["moving", "resident"])
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edit_stays_after_remove(sim: ModuleType, edit: Edit, moving: bool) -> None:
    pipe, twin, plan = tiny_pipelines.build("flux"), tiny_pipelines.build("flux"), planned("flux")
    component, path = linear_weight(pipe, plan, moving=moving)
    runtime = install(pipe, plan, device="sim")
    output(pipe, "flux")
    edit(getattr(pipe, component), path)
    edit(getattr(twin, component), path)
    runtime.remove()
    assert same(values(pipe), values(twin))
    assert all(t.device.type == "cpu" for m in modules_of(pipe).values() for t in m.parameters())


def test_an_edit_in_a_callback_reaches_the_next_step(sim: ModuleType) -> None:
    plan = planned("flux")
    component, path = linear_weight(tiny_pipelines.build("flux"), plan, moving=False)

    def edited(pipe: DiffusionPipeline, step: int, timestep: object, kwargs: dict) -> dict:
        in_place(getattr(pipe, component), path)
        return kwargs

    expected = output(tiny_pipelines.build("flux").to("sim"), "flux", callback_on_step_end=edited)
    pipe = tiny_pipelines.build("flux")
    with install(pipe, plan, device="sim"):
        assert torch.equal(output(pipe, "flux", callback_on_step_end=edited), expected)


# ---------------------------------------------------------------------------------------------------
# Whole components


def other(name: str, component: str) -> nn.Module:
    """A component of the same build with other weights."""
    module = getattr(tiny_pipelines.build(name), component)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.75)
    return module


@pytest.mark.parametrize(
    ("name", "component"),
    [("flux", "transformer"), ("flux", "text_encoder"), ("sdxl", "unet"), ("sdxl", "vae"), ("wan", "vae")],
)
def test_a_replaced_component_is_used_and_the_old_one_let_go(sim: ModuleType, name: str, component: str) -> None:
    expected = untuned(name, lambda pipe: setattr(pipe, component, other(name, component)))
    start = held_bytes()
    pipe = tiny_pipelines.build(name)
    with install(pipe, planned(name), device="sim"):
        output(pipe, name)
        rest = held_bytes()
        old = getattr(pipe, component)
        setattr(pipe, component, other(name, component))
        assert torch.equal(output(pipe, name), expected)
        assert held_bytes() == rest
        assert {p.device.type for p in old.parameters()} == {"cpu"}
        assert not hasattr(old, "_hf_hook")
        assert "forward" not in vars(old)
    assert held_bytes() == start


def test_a_component_that_comes_back_is_used_again(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("flux")
    expected = output(tiny_pipelines.build("flux").to("sim"), "flux")
    with install(pipe, planned("flux"), device="sim"):
        first = pipe.transformer
        pipe.transformer = other("flux", "transformer")
        assert not torch.equal(output(pipe, "flux"), expected)
        pipe.transformer = first
        assert torch.equal(output(pipe, "flux"), expected)


def test_a_component_may_be_exchanged_after_another_one_was_taken_out_or_cast(sim: ModuleType) -> None:
    def call(pipe: DiffusionPipeline) -> torch.Tensor:
        embeds = {"prompt_embeds": torch.zeros(1, 48, 32, device="sim")}
        embeds |= {"pooled_prompt_embeds": torch.zeros(1, 32, device="sim")}
        size = {"height": 32, "width": 32, "num_inference_steps": 1}
        generator = torch.Generator("cpu").manual_seed(0)
        return pipe(**embeds, **size, generator=generator, output_type="pt")[0].cpu()

    pipes = [tiny_pipelines.build("flux").to("sim"), tiny_pipelines.build("flux")]
    with install(pipes[1], planned("flux"), device="sim"):
        for pipe in pipes:
            pipe.text_encoder = None
            pipe.text_encoder_2.to(torch.float64)  # which this call does not use
        call(pipes[1])
        pipes[0].vae = other("flux", "vae").to("sim")
        pipes[1].vae = other("flux", "vae")
        assert torch.equal(call(pipes[1]), call(pipes[0]))


def test_a_component_under_a_second_name_and_two_exchanged_for_each_other_run_right(sim: ModuleType) -> None:
    def use_twice(pipe: DiffusionPipeline) -> None:
        pipe.text_encoder_2 = pipe.text_encoder

    def swap(pipe: DiffusionPipeline) -> None:
        pipe.text_encoder, pipe.text_encoder_2 = second[pipe], pipe.text_encoder

    untuned_pipe, pipe = tiny_pipelines.build("sd3").to("sim"), tiny_pipelines.build("sd3")
    second = {each: each.text_encoder_2 for each in (untuned_pipe, pipe)}
    with install(pipe, planned("sd3"), device="sim"):
        for edit in (use_twice, swap):
            edit(untuned_pipe)
            edit(pipe)
            expected = output(untuned_pipe, "sd3")
            for _ in range(2):
                assert torch.equal(output(pipe, "sd3"), expected)
    assert {p.device.type for each in (pipe.text_encoder, pipe.text_encoder_2) for p in each.parameters()} == {"cpu"}


class Wrapped(nn.Module):
    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.inside(*args, **kwargs)


class Forwarding(Wrapped):
    """Has every attribute of what it wraps, as many wrappers do."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inside"), name)


def test_a_component_in_a_wrapper_that_hands_on_what_it_lacks_runs_right(sim: ModuleType) -> None:
    expected = untuned("sdxl", lambda pipe: None)
    pipe = tiny_pipelines.build("sdxl")
    with install(pipe, planned("sdxl", 0.4), device="sim"):
        unet, pipe.unet = pipe.unet, Forwarding(pipe.unet)
        assert torch.equal(output(pipe, "sdxl"), expected)
        pipe.unet = unet
        assert torch.equal(output(pipe, "sdxl"), expected)


def without_first_block(pipe: DiffusionPipeline) -> None:
    blocks = pipe.transformer.single_transformer_blocks
    pipe.transformer.single_transformer_blocks = blocks[1:]


def with_one_more_block(pipe: DiffusionPipeline) -> None:
    blocks = pipe.transformer.single_transformer_blocks
    blocks.append(copy.deepcopy(blocks[0]))


def with_wrapped_blocks(pipe: DiffusionPipeline) -> None:
    """Every planned module in there has another path now."""
    blocks = pipe.transformer.transformer_blocks
    pipe.transformer.transformer_blocks = nn.ModuleList(Wrapped(block) for block in blocks)


@pytest.mark.parametrize(
    "edit", [without_first_block, with_one_more_block, with_wrapped_blocks], ids=lambda edit: edit.__name__
)
@pytest.mark.parametrize("fraction", [0.4, 1.0])
def test_a_component_with_other_modules_than_planned_runs_right_and_holds_no_more(
    sim: ModuleType, edit: Callable[[DiffusionPipeline], None], fraction: float
) -> None:
    expected = untuned("flux", edit)
    start = held_bytes()
    pipe = tiny_pipelines.build("flux")
    with install(pipe, planned("flux", fraction), device="sim"):
        output(pipe, "flux")
        edit(pipe)
        for _ in range(2):
            assert torch.equal(output(pipe, "flux"), expected)
        assert held_bytes() - start <= resident_bytes(planned("flux", fraction))
    assert held_bytes() == start
    assert {p.device.type for p in pipe.transformer.parameters()} == {"cpu"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["flux", "sdxl"])
@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")
def test_a_pipeline_cast_to_another_dtype_gives_the_untuned_output(
    sim: ModuleType, name: str, dtype: torch.dtype
) -> None:
    expected = untuned(name, lambda pipe: pipe.to(dtype))
    pipe = tiny_pipelines.build(name)
    with install(pipe, planned(name), device="sim"):
        output(pipe, name)
        rest = held_bytes()
        pipe.to(dtype)
        assert torch.equal(output(pipe, name), expected)
        assert held_bytes() <= rest
        assert torch.equal(output(pipe, name), expected)
    assert {p.dtype for m in modules_of(pipe).values() for p in m.parameters()} == {dtype}
    assert {p.device.type for m in modules_of(pipe).values() for p in m.parameters()} == {"cpu"}


def has_names_of_its_own(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """Its text encoder's `to` is as `StableUnCLIPImageNormalizer`'s: other names, new parameters."""

    def to(
        self: nn.Module, torch_device: torch.device | None = None, torch_dtype: torch.dtype | None = None
    ) -> nn.Module:
        for module in self.modules():
            for name, weight in [*module._parameters.items()]:
                if weight is not None:
                    setattr(module, name, nn.Parameter(weight.to(torch_device).to(torch_dtype), requires_grad=False))
        return self

    pipe.text_encoder.__class__ = type("OwnTo", (type(pipe.text_encoder),), {"to": to})
    return pipe


def test_a_component_whose_cast_has_names_of_its_own_is_cast(sim: ModuleType) -> None:
    expected = untuned("flux", lambda pipe: has_names_of_its_own(pipe).to(torch.bfloat16))
    pipe = has_names_of_its_own(tiny_pipelines.build("flux"))
    with install(pipe, planned("flux"), device="sim"):
        output(pipe, "flux")
        pipe.to(torch.bfloat16)
        assert torch.equal(output(pipe, "flux"), expected)
    assert {p.dtype for p in pipe.text_encoder.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in pipe.text_encoder.parameters()} == {"cpu"}


def test_a_component_cast_down_and_up_again_computes_with_rounded_weights(sim: ModuleType) -> None:
    def cast(pipe: DiffusionPipeline) -> None:
        pipe.transformer.to(torch.bfloat16)
        pipe.transformer.to(torch.float32)

    expected = untuned("flux", cast)
    pipe = tiny_pipelines.build("flux")
    with install(pipe, planned("flux"), device="sim"):
        assert not torch.equal(output(pipe, "flux"), expected)
        cast(pipe)
        assert torch.equal(output(pipe, "flux"), expected)


def test_a_component_that_grows_stays_within_the_plans_share(sim: ModuleType) -> None:
    def cast(pipe: DiffusionPipeline) -> None:
        pipe.vae.to(torch.float64)  # twice as many bytes for each weight

    expected = untuned("wan", cast)
    start = held_bytes()
    pipe = tiny_pipelines.build("wan")
    with install(pipe, planned("wan"), device="sim"):
        output(pipe, "wan")
        rest = held_bytes() - start
        cast(pipe)
        assert torch.equal(output(pipe, "wan"), expected)
        assert held_bytes() - start <= rest
