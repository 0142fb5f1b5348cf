"""What pipelines bring along that once was refused, or came back changed: each traced, tuned, equal, removed."""

import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor

import vramtune
from tests import tiny_pipelines
from tests.offload.state import state_of
from vramtune.layout import round_up

SETTINGS = {"num_inference_steps": 2, "output_type": "pt", **tiny_pipelines.CALL["sd15"]}


def run(pipe, **kwargs):
    return pipe(generator=torch.Generator("cpu").manual_seed(0), **{"prompt": "a cat", **SETTINGS, **kwargs})[0].cpu()


def with_safety_checker(pipe):
    tower = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = CLIPConfig(
        text_config=tower, vision_config={**tower, "image_size": 30, "patch_size": 15}, projection_dim=64
    )
    pipe.safety_checker = StableDiffusionSafetyChecker(config).eval()
    pipe.feature_extractor = CLIPImageProcessor(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30})
    return pipe


def with_an_empty_buffer(pipe):
    pipe.unet.conv_in.register_buffer("nothing", torch.empty(0))
    return pipe


def with_a_tiling_that_fails(pipe):
    def tiled(*args):
        raise RuntimeError("tiles of another size")

    pipe.vae.tiled_decode = tiled
    return pipe


class NeedsPrompt(StableDiffusionPipeline):
    def __call__(self, prompt, height=None, width=None, num_inference_steps=2, generator=None, output_type="pt"):
        return super().__call__(
            prompt, height, width, num_inference_steps=num_inference_steps, generator=generator, output_type=output_type
        )


def that_needs_a_prompt(pipe):
    pipe.__class__ = NeedsPrompt
    return pipe


class OffloadsItself(StableDiffusionPipeline):
    """As AudioLDM2: hooks of its own, on halves of a component too, and no `_all_hooks`."""

    def enable_model_cpu_offload(self, gpu_id=None, device="sim"):
        hook = None
        for module in (self.text_encoder.encoder, self.unet, self.vae, self.text_encoder):
            _, hook = cpu_offload_with_hook(module, torch.device(device), prev_module_hook=hook)


def that_offloads_itself(pipe):
    pipe.__class__ = OffloadsItself
    return pipe


class CallsAChild(StableDiffusionPipeline):
    """As MiniMax-H3, which calls `text_encoder.model` and never the head beside it."""

    def encode_prompt(self, prompt, device, *args, **kwargs):
        ids = self.tokenizer([prompt, ""], padding="max_length", return_tensors="pt").input_ids
        return self.text_encoder.model(ids.to(device))[0].chunk(2)


class WithAHead(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.head = model, torch.nn.Linear(32, 1000)

    device = property(lambda self: self.model.device)
    dtype = property(lambda self: self.model.dtype)


def that_calls_a_child(pipe):
    pipe.__class__ = CallsAChild
    pipe.text_encoder = WithAHead(pipe.text_encoder)
    return pipe


KINDS = [
    with_safety_checker,
    *(
        pytest.param(kind, marks=pytest.mark.slow)
        for kind in (
            with_a_tiling_that_fails,
            that_calls_a_child,
            with_an_empty_buffer,
            that_needs_a_prompt,
            that_offloads_itself,
        )
    ),
]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_tuned_and_streamed_with_the_output_of_the_pipeline_resident(sim, no_garbage, kind):
    wanted = run(kind(tiny_pipelines.build("sd15")).to("sim"))
    pipe = kind(tiny_pipelines.build("sd15"))
    with vramtune.autotune(pipe, call_kwargs=SETTINGS, progress=False) as tuned:
        with pytest.raises(vramtune.BudgetError) as raised:
            vramtune.plan(tuned.profile, 0.001)
        assert torch.equal(run(pipe), wanted)
    with vramtune.autotune(pipe, 1.01 * raised.value.smallest_bytes / 2**30, call_kwargs=SETTINGS, progress=False):
        assert torch.equal(run(pipe), wanted)
    assert type(pipe.unet.forward.__self__) is type(pipe.unet)


def test_its_own_offload_is_back_after_removal(sim, no_garbage):
    wanted = run(tiny_pipelines.build("sd15").to("sim"))
    pipe = that_offloads_itself(tiny_pipelines.build("sd15"))
    pipe.enable_model_cpu_offload()
    with vramtune.autotune(pipe, call_kwargs=SETTINGS, progress=False):
        assert torch.equal(run(pipe), wanted)
    assert pipe.unet._hf_hook.execution_device.type == "sim"
    assert pipe.text_encoder.encoder._hf_hook.execution_device.type == "sim"
    assert torch.equal(run(pipe), wanted)


def test_a_tiling_that_cannot_be_followed_is_not_offered():
    pipe = with_a_tiling_that_fails(tiny_pipelines.build("sd15"))
    assert vramtune.profile(pipe, call_kwargs=SETTINGS, gpu="RTX 4060", progress=False).variants == ()


def test_a_safety_checker_counts_with_its_calls():
    pipe = with_safety_checker(tiny_pipelines.build("sd15"))
    profile = vramtune.profile(pipe, call_kwargs=SETTINGS, gpu="RTX 4060", progress=False)
    assert "safety_checker" in [stage.name for stage in profile.stages]
    assert profile.component("safety_checker").used_bytes == profile.component("safety_checker").weights.allocated_bytes


def test_a_child_that_is_called_by_itself_is_a_stage_and_what_is_beside_it_is_not_used(sim, no_garbage):
    pipe = that_calls_a_child(tiny_pipelines.build("sd15"))
    state = state_of(pipe)
    with vramtune.autotune(pipe, call_kwargs=SETTINGS, progress=False) as tuned:
        assert tuned.plan.stages[0].name == "text_encoder.model"
        part = tuned.profile.component("text_encoder")
        assert part.used_bytes == part.weights.allocated_bytes - round_up(32_000 * 4) - round_up(1000 * 4)
        run(pipe)
        assert [stage.name for stage in tuned.measured.stages] == [stage.name for stage in tuned.plan.stages]
    assert state_of(pipe) == state
