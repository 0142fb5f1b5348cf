"""Modular pipelines on the simulated accelerator: profiled, tuned, streamed, equal bit for bit, given back."""

import pytest
import torch
from diffusers import ComponentsManager, FluxModularPipeline, ModularPipeline
from diffusers.loaders.lora_base import _func_optionally_disable_offloading
from diffusers.modular_pipelines.flux.encoders import FluxTextEncoderStep

import vramtune
from tests import tiny_modular_pipelines, tiny_pipelines
from tests.offload.state import same, state_of, values
from tests.offload.tuned_pipelines import roles, smallest_gib
from tests.tiny_modular_pipelines import CALL, build, run
from vramtune.errors import UsageError

STAGES = {
    "flux": ["text_encoder", "text_encoder_2", "transformer", "vae.decode"],
    "sdxl": ["text_encoder", "text_encoder_2", "unet", "vae.decode"],
    "flux3": ["text_encoder", "transformer", "vae.decode"],
    "minimax_h3": ["text_encoder.model", "transformer", "vae.decode", "audio_vae.decode"],
}

# MiniMax-H3's audio decoder has them
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")


def profiled(pipe, call_kwargs, gpu="RTX 4060"):
    return vramtune.profile(pipe, gpu=gpu, call_kwargs=call_kwargs, progress=False)


SLOW = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("sdxl", "minimax_h3")
]  # 124 frames are the fewest that it makes


@pytest.mark.parametrize("name", ["flux", "flux3", *SLOW])
def test_tuned_and_streamed_it_has_its_own_output_and_is_given_back(sim, no_garbage, name):
    wanted = run(build(name).to("sim"), name).cpu()
    pipe = build(name)
    state, weights = state_of(pipe), values(pipe)
    with vramtune.autotune(pipe, call_kwargs=CALL[name], progress=False) as tuned:
        assert [stage.name for stage in tuned.plan.stages] == STAGES[name]
        assert torch.equal(run(pipe, name).cpu(), wanted)
        least = smallest_gib(tuned.profile)
    with vramtune.autotune(pipe, least, call_kwargs=CALL[name], progress=False) as tuned:
        # MiniMax-H3's decoder needs so much that its encoder, in the smallest budget, is moved as a whole
        assert ("offloaded" if name == "minimax_h3" else "streamed") in roles(tuned.plan)
        for _ in range(2):
            assert torch.equal(run(pipe, name).cpu(), wanted)
        assert tuned.measured.peak_bytes <= tuned.plan.asked_bytes
        assert tuned.measured.moved_bytes == tuned.plan.estimate.moved_bytes > 0
    assert state_of(pipe) == state
    assert same(values(pipe), weights)


def test_its_profile_is_that_of_the_standard_pipeline_and_leaves_it_as_it_was():
    pipe = build("flux")
    state = state_of(pipe)
    profile = profiled(pipe, CALL["flux"])
    standard = profiled(tiny_pipelines.build("flux"), CALL["flux"])
    assert state_of(pipe) == state
    assert profile.pipeline_class == "FluxModularPipeline"
    assert [(s.name, s.num_iterations, s.activation_bytes) for s in profile.stages] == [
        (s.name, s.num_iterations, s.activation_bytes) for s in standard.stages
    ]
    assert [c.used_bytes for c in profile.components_in_call_order] == [
        c.used_bytes for c in standard.components_in_call_order
    ]


def test_it_draws_no_bar_while_it_is_followed(capsys):
    pipe = FluxModularPipeline()
    pipe.update_components(**tiny_pipelines.build("flux").components)
    profiled(pipe, CALL["flux"])
    assert "it/s" not in capsys.readouterr().err


class CopiedByNone(torch.nn.Linear):
    def __deepcopy__(self, memo):
        raise AssertionError("another pipeline's weights are copied")


@pytest.mark.parametrize("is_offloading", [False, True])
def test_what_its_manager_has_of_others_is_not_copied(sim, no_garbage, is_offloading):
    manager = ComponentsManager()
    pipe = build("flux", manager)
    manager.add("unet", CopiedByNone(2, 2))
    if is_offloading:
        manager.enable_auto_cpu_offload("sim")
    profiled(pipe, CALL["flux"])
    assert pipe._components_manager is manager


def test_an_argument_that_no_block_takes_is_refused():
    with pytest.raises(UsageError, match=r"'heigth'.*It accepts .*height"):
        profiled(build("flux"), {"heigth": 32})


def test_one_without_its_components_is_refused():
    with pytest.raises(UsageError, match="FluxModularPipeline refused the call"):
        profiled(FluxModularPipeline(), CALL["flux"])


def test_encoders_alone_and_what_follows_them_from_their_state(sim, no_garbage):
    """A workflow in two pipelines, each tuned by itself."""
    whole = build("flux")
    settings = {"prompt": "a cat", "max_sequence_length": 48}
    encoding, rest = split(whole, "text_encoder")
    later = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "pt"}
    for pipe in (encoding, rest):
        pipe.to("sim")
    wanted_state = encoding(**settings)
    wanted = rest(wanted_state, output="images", generator=torch.Generator().manual_seed(0), **later).cpu()
    for pipe in (encoding, rest):
        pipe.to("cpu")
    with vramtune.autotune(encoding, call_kwargs=settings, progress=False) as tuned:
        assert [stage.name for stage in tuned.plan.stages] == ["text_encoder", "text_encoder_2"]
        state = encoding(**settings)
    assert torch.equal(state.prompt_embeds.cpu(), wanted_state.prompt_embeds.cpu())
    arguments = {"state": state, **later}
    least = smallest_gib(profiled(rest, arguments, gpu=None))
    with vramtune.autotune(rest, least, call_kwargs=arguments, progress=False) as tuned:
        assert [stage.name for stage in tuned.plan.stages] == ["transformer", "vae.decode"]
        assert "streamed" in roles(tuned.plan)
        output = rest(**arguments, output="images", generator=torch.Generator().manual_seed(0))
    assert torch.equal(output.cpu(), wanted)


def split(pipe: ModularPipeline, name: str) -> tuple[ModularPipeline, ModularPipeline]:
    """A pipeline of the named block, and one of the others."""
    blocks = pipe.blocks
    first, rest = blocks.sub_blocks.pop(name).init_pipeline(), blocks.init_pipeline()
    return tuple(tiny_modular_pipelines.with_components_of(pipe, each) for each in (first, rest))


def test_one_block_may_be_a_pipeline_with_components_that_are_not_loaded():
    pipe = FluxTextEncoderStep().init_pipeline()
    standard = tiny_pipelines.build("flux")
    pipe.update_components(**{name: getattr(standard, name) for name in pipe.null_component_names})
    profile = profiled(pipe, {"prompt": "a cat", "max_sequence_length": 48})
    assert [stage.name for stage in profile.stages] == ["text_encoder", "text_encoder_2"]


def test_the_lora_loaders_find_the_way_back_to_the_plan(sim, no_garbage):
    pipe = build("flux")
    with vramtune.autotune(pipe, call_kwargs=CALL["flux"], progress=False):
        is_offloaded, *_ = _func_optionally_disable_offloading(pipe)
        assert is_offloaded
        assert not any(hasattr(pipe.components[name], "_hf_hook") for name in ("transformer", "vae"))
        pipe.enable_model_cpu_offload()
        assert pipe.transformer._hf_hook.execution_device.type == "sim"
    assert not hasattr(pipe, "enable_model_cpu_offload")


def test_a_component_exchanged_between_calls_runs(sim, no_garbage):
    other = tiny_pipelines.flux()
    expected = build("flux")
    expected.update_components(transformer=other.transformer)
    wanted = run(expected.to("sim"), "flux").cpu()
    expected.to("cpu")
    pipe = build("flux")
    with vramtune.autotune(pipe, call_kwargs=CALL["flux"], progress=False):
        run(pipe, "flux")
        pipe.update_components(transformer=other.transformer)
        assert torch.equal(run(pipe, "flux").cpu(), wanted)


def test_one_that_a_manager_offloads_is_profiled_but_not_tuned(sim, no_garbage):
    manager = ComponentsManager()
    pipe = build("flux", manager)
    alone = profiled(build("flux"), CALL["flux"])
    manager.enable_auto_cpu_offload("sim")
    assert profiled(pipe, CALL["flux"]).stages == alone.stages
    with pytest.raises(UsageError, match=r"offloaded by a ComponentsManager.*disable_auto_cpu_offload"):
        vramtune.autotune(pipe, call_kwargs=CALL["flux"], progress=False)
    manager.disable_auto_cpu_offload()
    with vramtune.autotune(pipe, call_kwargs=CALL["flux"], progress=False) as tuned:
        assert tuned.is_installed
