"""Parts of a standard pipeline planned by themselves: a method, encoders alone, a denoiser alone."""

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionXLPipeline

import vramtune
from tests import tiny_pipelines
from tests.offload.state import same, state_of, values
from tests.offload.tuned_pipelines import roles, smallest_gib
from vramtune.errors import UsageError

PROMPT = {"prompt": "a cat", "max_sequence_length": 48}
DENOISING = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "latent"}
METHODS = {
    "flux": {"prompt": "a cat", "prompt_2": None, "max_sequence_length": 48},
    "sdxl": {"prompt": "a cat", "do_classifier_free_guidance": True},
    "sd15": {"prompt": "a cat", "num_images_per_prompt": 1, "do_classifier_free_guidance": True, "device": "sim"},
}
"""Arguments of each pipeline's `encode_prompt`; the last one's insists on a device."""


def profiled(pipe, gpu="RTX 4060", **arguments):
    return vramtune.profile(pipe, gpu=gpu, progress=False, **arguments)


def stages_of(noun):
    return [stage.name for stage in noun.stages]


def on_host(outputs):
    return [each.cpu() for each in outputs if isinstance(each, torch.Tensor)]


@torch.no_grad()
def encoded(pipe, **settings):
    return on_host(pipe.encode_prompt(**settings))


def equal(some, others):
    return len(some) == len(others) and all(map(torch.equal, some, others))


@pytest.mark.parametrize("name", METHODS)
def test_encode_prompt_is_planned_streamed_and_equal_by_itself(sim, no_garbage, name):
    settings = METHODS[name]
    pipe = tiny_pipelines.build(name).to("sim")
    wanted = encoded(pipe, **settings)
    pipe.to("cpu")
    state, weights = state_of(pipe), values(pipe)
    least = smallest_gib(profiled(pipe, None, method="encode_prompt", call_kwargs=settings))
    how = {"method": "encode_prompt", "call_kwargs": settings, "progress": False}
    with vramtune.autotune(pipe, least, **how) as tuned:
        assert all(stage.startswith("text_encoder") for stage in stages_of(tuned.plan))
        assert "streamed" in roles(tuned.plan)
        assert equal(encoded(pipe, **settings), wanted)
        assert tuned.measured.peak_bytes <= tuned.plan.asked_bytes
        assert tuned.measured.moved_bytes == tuned.plan.estimate.moved_bytes
    assert state_of(pipe) == state
    assert same(values(pipe), weights)


def test_what_a_planned_method_returns_needs_no_gradient(sim, no_garbage):
    pipe = tiny_pipelines.build("flux")
    with vramtune.autotune(pipe, method="encode_prompt", call_kwargs=PROMPT | {"prompt_2": None}, progress=False):
        assert not any(t.requires_grad for t in pipe.encode_prompt(prompt_2=None, **PROMPT))


def test_the_whole_call_works_while_a_method_is_planned(sim, no_garbage):
    wanted = tiny_pipelines.run(tiny_pipelines.build("flux").to("sim"), "flux").cpu()
    pipe = tiny_pipelines.build("flux")
    with vramtune.autotune(pipe, method="encode_prompt", call_kwargs=METHODS["flux"], progress=False):
        assert torch.equal(tiny_pipelines.run(pipe, "flux").cpu(), wanted)


def test_encoders_alone_then_a_denoiser_alone(sim, no_garbage):
    """FLUX.1 in two pipelines, each tuned by itself; the components that a part lacks are None."""
    whole = tiny_pipelines.build("flux").to("sim")
    wanted_embeds = encoded(whole, prompt_2=None, **PROMPT)
    generator = torch.Generator().manual_seed(0)
    wanted = whole(**PROMPT, **DENOISING, generator=generator).images.cpu()
    whole.to("cpu")
    parts = whole.components

    encoders = FluxPipeline(**{**parts, "transformer": None, "vae": None})
    arguments = METHODS["flux"]
    least = smallest_gib(profiled(encoders, None, method="encode_prompt", call_kwargs=arguments))
    with vramtune.autotune(encoders, least, method="encode_prompt", call_kwargs=arguments, progress=False) as tuned:
        assert stages_of(tuned.plan) == ["text_encoder", "text_encoder_2"]
        embeds, pooled, _ = encoders.encode_prompt(**arguments)
    assert equal(on_host([embeds, pooled]), wanted_embeds[:2])

    nothing = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    denoiser = FluxPipeline(**{**parts, **nothing})
    call = {**DENOISING, "prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    least = smallest_gib(profiled(denoiser, None, call_kwargs=call))
    with vramtune.autotune(denoiser, least, call_kwargs=call, progress=False) as tuned:
        assert stages_of(tuned.plan) == ["transformer"]
        assert "streamed" in roles(tuned.plan)
        latents = denoiser(**call, generator=torch.Generator().manual_seed(0)).images
    assert torch.equal(latents.cpu(), wanted)


def test_a_denoiser_without_a_vae():
    pipe = tiny_pipelines.build("sdxl")
    alone = StableDiffusionXLPipeline(
        vae=None,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=pipe.unet,
        scheduler=pipe.scheduler,
        add_watermarker=False,
    )
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    embeds = dict(zip(names, pipe.encode_prompt("a cat"), strict=True))
    assert stages_of(profiled(alone, call_kwargs={**DENOISING, **embeds})) == ["unet"]


def test_the_method_is_kept_in_files_and_shown(tmp_path):
    profile = profiled(tiny_pipelines.build("flux"), method="encode_prompt", call_kwargs=METHODS["flux"])
    profile.save(tmp_path / "profile.json")
    plan = vramtune.plan(vramtune.Profile.load(tmp_path / "profile.json"), 1)
    assert plan.workload.method == "encode_prompt"
    card = vramtune.compare(profile, 1)._repr_html_()
    assert "encode_prompt, max_sequence_length=48" in card


def test_a_plan_for_a_method_that_the_pipeline_lacks_is_refused(sim, no_garbage):
    profile = profiled(tiny_pipelines.build("flux"), method="encode_prompt", call_kwargs=METHODS["flux"])
    plan = vramtune.plan(profile, 1)
    pipe = tiny_pipelines.build("flux")
    pipe.__class__ = type("FluxPipeline", (FluxPipeline,), {"encode_prompt": property(lambda self: self.missing)})
    with pytest.raises(UsageError, match="'encode_prompt', a method that the pipeline lacks"):
        vramtune.install(pipe, plan)


@pytest.mark.parametrize(
    ("method", "arguments", "said"),
    [
        ("encode_promt", {}, "FluxPipeline has no method 'encode_promt'"),
        ("encode_prompt", {"height": 32}, "does not accept these arguments.*'height'.*max_sequence_length"),
        ("check_inputs", dict.fromkeys(("prompt", "prompt_2"), "a") | {"height": 32, "width": 32}, "runs no component"),
    ],
)
def test_a_call_that_cannot_be_planned_is_refused(method, arguments, said):
    with pytest.raises(UsageError, match=said):
        profiled(tiny_pipelines.build("flux"), method=method, call_kwargs=arguments)
