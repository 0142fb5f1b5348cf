"""Calls that the plan does not know: the output is the untuned pipeline's, bit for bit."""

import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import (
    FirstBlockCacheConfig,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)

from tests import tiny_pipelines
from tests.offload.tuned_pipelines import held_bytes, tuned, whole

pytestmark = pytest.mark.usefixtures("sim", "no_garbage")

Work = Callable[[Any], Any]


def same(name: str, work: Work, *, fraction: float = 0.5) -> None:
    """That work gives the same on a tuned pipeline, before, between and after calls, and leaves nothing behind."""
    want = work(whole(name))
    want_call = tiny_pipelines.run(whole(name), name)
    with tuned(name, fraction) as (pipe, _):
        assert_equal(work(pipe), want)
        assert torch.equal(tiny_pipelines.run(pipe, name), want_call)
        at_rest_bytes = held_bytes()  # with the timesteps that a scheduler keeps from call to call
        assert_equal(work(pipe), want)
        assert torch.equal(tiny_pipelines.run(pipe, name), want_call)
        assert held_bytes() == at_rest_bytes


def assert_equal(got: Any, want: Any) -> None:
    if isinstance(want, torch.Tensor):
        got, want = [got], [want]
    assert len(got) == len(want)
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize(
    "name", ["sdxl", "flux", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sd15", "sd3", "wan"))]
)
@pytest.mark.parametrize("num_steps", [1, 5])
def test_fewer_or_more_steps_than_planned_give_the_untuned_output(name: str, num_steps: int) -> None:
    same(name, lambda pipe: tiny_pipelines.run(pipe, name, num_inference_steps=num_steps))


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_a_larger_image_than_planned_is_the_untuned_one(name: str) -> None:
    same(name, lambda pipe: tiny_pipelines.run(pipe, name, height=64, width=48))


def test_prompt_embeddings_passed_in_to_sdxl_give_the_untuned_output() -> None:
    def work(pipe: Any) -> torch.Tensor:
        torch.manual_seed(0)
        embeds = {
            "prompt_embeds": torch.randn(1, 77, 64),
            "negative_prompt_embeds": torch.randn(1, 77, 64),
            "pooled_prompt_embeds": torch.randn(1, 32),
            "negative_pooled_prompt_embeds": torch.randn(1, 32),
        }
        return run_without_prompt(pipe, {key: value.to("sim") for key, value in embeds.items()})

    same("sdxl", work)


def test_prompt_embeddings_from_encode_prompt_give_flux_the_untuned_output() -> None:
    def work(pipe: Any) -> torch.Tensor:
        with torch.no_grad():
            prompt_embeds, pooled, _ = pipe.encode_prompt("a cat", None, max_sequence_length=48)
        return run_without_prompt(pipe, {"prompt_embeds": prompt_embeds, "pooled_prompt_embeds": pooled})

    same("flux", work)


def run_without_prompt(pipe: Any, embeds: dict[str, torch.Tensor]) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    size = {"height": 32, "width": 32}
    return pipe(**embeds, **size, num_inference_steps=2, generator=generator, output_type="pt")[0]


@pytest.mark.parametrize(
    ("name", "img2img"),
    [
        ("sd15", StableDiffusionImg2ImgPipeline),
        ("sdxl", StableDiffusionXLImg2ImgPipeline),
        ("sd3", StableDiffusion3Img2ImgPipeline),
    ],
)
def test_img2img_with_the_same_components_gives_the_untuned_output(name: str, img2img: Any) -> None:
    def work(pipe: Any) -> torch.Tensor:
        extra = {"requires_safety_checker": False} if name == "sd15" else {}
        other = img2img(**pipe.components, **extra)
        other.set_progress_bar_config(disable=True)
        image = torch.linspace(0, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
        generator = torch.Generator("cpu").manual_seed(0)
        size = {"height": 32, "width": 32} if name == "sd3" else {}
        return other("a cat", image=image, num_inference_steps=4, generator=generator, output_type="pt", **size)[0]

    same(name, work)


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_the_vae_called_directly_gives_the_untuned_output(name: str) -> None:
    @torch.no_grad()
    def work(pipe: Any) -> list[torch.Tensor]:
        image = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32).to("sim")
        latents = pipe.vae.encode(image).latent_dist.mode()
        return [latents, pipe.vae.decode(latents).sample, pipe.vae(image).sample]

    same(name, work)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_a_latent_preview_at_every_step_is_the_untuned_one(name: str) -> None:
    def work(pipe: Any) -> list[torch.Tensor]:
        previews = []

        def preview(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            previews.append(pipe.vae.decode(kwargs["latents"]).sample)
            return {}

        image = tiny_pipelines.run(pipe, name, num_inference_steps=3, callback_on_step_end=preview)
        assert len(previews) == 3
        return [image, *previews]

    same(name, work)


@pytest.mark.parametrize("fraction", [0.4, 0.7])
def test_first_block_cache_gives_the_untuned_output(fraction: float) -> None:
    def work(pipe: Any) -> list[torch.Tensor]:
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=10.0))
        with_cache = tiny_pipelines.run(pipe, "flux", num_inference_steps=5)
        pipe.transformer.disable_cache()
        return [with_cache, tiny_pipelines.run(pipe, "flux", num_inference_steps=5)]

    cached, uncached = work(whole("flux"))
    assert not torch.equal(cached, uncached), "nothing was skipped"
    same("flux", work, fraction=fraction)


def test_guidance_that_skips_layers_gives_the_untuned_output() -> None:
    def work(pipe: Any) -> torch.Tensor:
        skip = {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
        return tiny_pipelines.run(pipe, "sd3", num_inference_steps=4, **skip)

    assert not torch.equal(work(whole("sd3")), tiny_pipelines.run(whole("sd3"), "sd3", num_inference_steps=4))
    same("sd3", work)


def test_a_nested_call_in_a_callback_gives_the_untuned_output() -> None:
    def work(pipe: Any) -> list[torch.Tensor]:
        inner = []

        def nest(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            inner.append(tiny_pipelines.run(pipe, "sd15"))
            return {}

        return [tiny_pipelines.run(pipe, "sd15", callback_on_step_end=nest), *inner]

    same("sd15", work)


def test_a_nested_call_is_measured_as_part_of_the_outer_one() -> None:
    def nest(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            tiny_pipelines.run(pipe, "sd15")
        return {}

    with tuned("sd15") as (pipe, runtime):
        tiny_pipelines.run(pipe, "sd15", callback_on_step_end=nest)
        encode, denoise, decode = (stage.name for stage in runtime.plan.stages)
        names = [stage.name for stage in runtime.measured.stages]
        assert names == [encode, denoise, encode, denoise, decode, denoise, decode]


def test_a_component_called_from_another_thread_waits_for_the_call(sim: ModuleType) -> None:
    latents = torch.linspace(-1, 1, 4 * 16 * 16).reshape(1, 4, 16, 16).to("sim")

    @torch.no_grad()
    def decode(pipe: Any) -> torch.Tensor:
        return pipe.vae.decode(latents).sample

    want_image, want_decoded = tiny_pipelines.run(whole("sd15"), "sd15"), decode(whole("sd15"))
    with tuned("sd15") as (pipe, _):
        decoded: list[torch.Tensor] = []
        thread = threading.Thread(target=lambda: decoded.append(decode(pipe)))

        def start(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            before_bytes = sim.memory_allocated()
            if step == 0:
                thread.start()
            thread.join(timeout=0.2)
            assert not decoded, "it did not wait"
            assert sim.memory_allocated() == before_bytes, "it moved weights before it waited"
            return {}

        image = tiny_pipelines.run(pipe, "sd15", callback_on_step_end=start)
        thread.join()
    assert torch.equal(image, want_image)
    assert torch.equal(decoded[0], want_decoded)
