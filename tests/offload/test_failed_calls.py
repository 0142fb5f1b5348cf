from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from tests import tiny_pipelines
from tests.offload.state import output, same, state_of, values
from tests.offload.tuned_pipelines import held_bytes, planned, resident_bytes
from vramtune.offload.install import install

NAMES = ["flux", "sdxl", "wan"]


BROKEN = [
    ("flux", "text_encoder", "encoder.layers.1.mlp"),
    ("flux", "text_encoder_2", "encoder.block.1"),
    ("flux", "transformer", "transformer_blocks.1.attn"),
    ("flux", "transformer", "single_transformer_blocks.0"),
    ("flux", "transformer", ""),
    ("flux", "vae", "decoder.up_blocks.0.resnets.0"),
    ("sdxl", "text_encoder_2", "text_projection"),
    ("sdxl", "unet", "mid_block.attentions.0"),
    ("sdxl", "vae", "decoder.conv_out"),
    ("wan", "transformer", "blocks.1.ffn"),
    ("wan", "vae", "decoder.mid_block"),
]


def fail(pipe: DiffusionPipeline, name: str, error: BaseException, **call_kwargs: Any) -> None:
    with pytest.raises(type(error)):
        output(pipe, name, **call_kwargs)
    error.__traceback__ = None  # its frames hold the call's activations
    error.__context__ = None
    if name == "wan":
        pipe.vae.clear_cache()  # which the next call would do: frames of the video so far, tuned or not


def assert_recovered(
    pipe: DiffusionPipeline, name: str, expected: torch.Tensor, weights: dict[str, torch.Tensor], start: int
) -> None:
    assert held_bytes() - start == resident_bytes(planned(name))
    assert same(values(pipe), weights)
    assert torch.equal(output(pipe, name), expected)
    assert held_bytes() - start == resident_bytes(planned(name))


@pytest.mark.parametrize(("step", "error"), [(0, RuntimeError("broken")), (1, KeyboardInterrupt())], ids=repr)
@pytest.mark.parametrize("name", NAMES)
def test_after_an_error_in_a_callback_memory_weights_and_output_are_as_before(
    sim: ModuleType, expected: dict[str, torch.Tensor], name: str, step: int, error: BaseException
) -> None:
    start, pipe = held_bytes(), tiny_pipelines.build(name)
    weights = values(pipe)

    def callback(pipe: DiffusionPipeline, now: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:
        if now == step:
            raise error
        return kwargs

    with install(pipe, planned(name), device="sim"):
        fail(pipe, name, error, callback_on_step_end=callback)
        assert_recovered(pipe, name, expected[name], weights, start)


@pytest.mark.parametrize(
    ("place", "error"), [("before", RuntimeError("broken")), ("after", KeyboardInterrupt())], ids=repr
)
@pytest.mark.parametrize(("name", "component", "path"), BROKEN)
def test_after_an_error_inside_a_component_memory_weights_and_output_are_as_before(
    sim: ModuleType,
    expected: dict[str, torch.Tensor],
    name: str,
    component: str,
    path: str,
    place: str,
    error: BaseException,
) -> None:
    def hook(*_: object) -> None:
        raise error

    start, pipe = held_bytes(), tiny_pipelines.build(name)
    weights = values(pipe)
    with install(pipe, planned(name), device="sim") as runtime:
        output(pipe, name)
        measured = runtime.measured
        module = getattr(pipe, component).get_submodule(path)
        handle = (module.register_forward_pre_hook if place == "before" else module.register_forward_hook)(hook)
        fail(pipe, name, error)
        handle.remove()
        assert runtime.measured == measured
        assert_recovered(pipe, name, expected[name], weights, start)


def test_remove_after_a_failed_call_gives_the_pipeline_back_as_it_was(sim: ModuleType, no_garbage: None) -> None:
    pipe = tiny_pipelines.build("flux")
    state, weights, held = state_of(pipe), values(pipe), held_bytes()

    def hook(*_: object) -> None:
        raise error

    error = KeyboardInterrupt()
    with install(pipe, planned("flux"), device="sim"):
        handle = pipe.transformer.transformer_blocks[1].register_forward_hook(hook)
        fail(pipe, "flux", error)
        handle.remove()
    assert state_of(pipe) == state
    assert same(values(pipe), weights)
    assert held_bytes() == held
