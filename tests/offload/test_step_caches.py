"""Components that keep something from one step of a call for the next: what failed half way must not count twice."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.hooks import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks.hooks import CacheContext, StateManager, _set_cache_context
from transformers import LlamaConfig, LlamaForCausalLM

import vramtune
from tests import tiny_pipelines
from tests.offload.state import output
from tests.offload.tuned_pipelines import planned, profiled
from tests.simgpu.prediction import sim_device
from vramtune.contract import forget_steps, keeps_steps
from vramtune.offload.install import install
from vramtune.offload.retry import NOT_REPEATABLE
from vramtune.schema import Plan
from vramtune.tuner.search import choose_plan

NUM_STEPS = 6
CACHES = {
    "first block": lambda: FirstBlockCacheConfig(threshold=0.05),
    "attention broadcast": lambda: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000),
        spatial_attention_block_identifiers=("transformer_blocks", "single_transformer_blocks"),
        current_timestep_callback=lambda: 500,
    ),
    "taylor": lambda: TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1, max_order=1),
    "mag": lambda: MagCacheConfig(
        threshold=0.1,
        num_inference_steps=NUM_STEPS,
        mag_ratios=torch.linspace(1, 0.9, NUM_STEPS),
        max_skip_steps=2,
        retention_ratio=0.2,
    ),
}


def cached(cache: str) -> DiffusionPipeline:
    pipe = tiny_pipelines.build("flux")
    pipe.transformer.enable_cache(CACHES[cache]())
    return pipe


def run(pipe: DiffusionPipeline, **call_kwargs: Any) -> torch.Tensor:
    return output(pipe, "flux", num_inference_steps=NUM_STEPS, **call_kwargs)


def failing_once(error: BaseException, call: int) -> Callable[..., None]:
    num_calls = 0

    def hook(*_: object) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == call:
            raise error

    return hook


def in_vain() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError("out of memory. Tried to allocate 2.00 KiB")


@pytest.mark.parametrize("place", ["proj_out", "transformer_blocks.1", "the pipeline"])
@pytest.mark.parametrize("cache", CACHES)
def test_a_call_that_ran_out_of_memory_gives_what_it_gives_without(
    sim: ModuleType, monkeypatch: pytest.MonkeyPatch, cache: str, place: str
) -> None:
    want = run(cached(cache).to("sim"))
    pipe, fail = cached(cache), failing_once(in_vain(), 3)
    if place == "the pipeline":
        step = pipe.scheduler.step
        monkeypatch.setattr(pipe.scheduler, "step", lambda *args, **kwargs: fail() or step(*args, **kwargs))
    else:
        pipe.transformer.get_submodule(place).register_forward_pre_hook(fail)
    profiled("flux")
    with install(pipe, planned("flux"), device="sim") as runtime:
        assert torch.equal(run(pipe), want)
        assert runtime.measured.num_out_of_memory == 1
        assert torch.equal(run(pipe), want)


@pytest.mark.parametrize("cache", CACHES)
def test_the_call_after_an_interrupted_one_is_right(sim: ModuleType, cache: str) -> None:
    want = run(cached(cache).to("sim"))
    pipe = cached(cache)

    def interrupt(pipe: DiffusionPipeline, step: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            raise KeyboardInterrupt
        return kwargs

    profiled("flux")
    with install(pipe, planned("flux"), device="sim"):
        with pytest.raises(KeyboardInterrupt):
            run(pipe, callback_on_step_end=interrupt)
        assert torch.equal(run(pipe), want)


def test_with_a_callback_the_error_says_that_the_call_was_not_run_again(sim: ModuleType) -> None:
    pipe = cached("first block")
    pipe.transformer.proj_out.register_forward_pre_hook(failing_once(in_vain(), 3))
    profiled("flux")
    with install(pipe, planned("flux"), device="sim"):
        with pytest.raises(torch.OutOfMemoryError) as raised:
            run(pipe, callback_on_step_end=lambda pipe, step, timestep, kwargs: kwargs)
        assert raised.value.__notes__ == [NOT_REPEATABLE]
        assert torch.equal(run(pipe), run(cached("first block").to("sim")))


def test_steps_are_forgotten_and_the_context_of_the_call_that_runs_is_not() -> None:
    transformer = cached("first block").transformer
    assert keeps_steps(transformer)
    assert not keeps_steps(tiny_pipelines.build("flux").transformer)
    _set_cache_context(transformer, CacheContext("cond"))
    registries = [r for module in transformer.modules() if (r := getattr(module, "_diffusers_hook", None)) is not None]
    hooks = [hook for registry in registries for hook in registry.hooks.values()]
    managers = [value for hook in hooks for value in vars(hook).values() if isinstance(value, StateManager)]
    for manager in managers:
        manager.get_state()
    forget_steps(transformer)
    assert managers
    assert not any(manager._state_cache for manager in managers)
    assert {manager.context.name for manager in managers} == {"cond"}


# ---------------------------------------------------------------------------------------------------
# Caches that a component is given


class Writer(DiffusionPipeline):  # type: ignore[misc]
    """A pipeline that goes on with tokens, one after the other."""

    model_cpu_offload_seq = "llm"

    def __init__(self, llm: LlamaForCausalLM) -> None:
        super().__init__()
        self.register_modules(llm=llm)

    @torch.no_grad()
    def __call__(self, num_tokens: int = 6) -> torch.Tensor:
        tokens = new = torch.tensor([[1, 5, 7, 9]], device=self._execution_device)
        cache = None
        for _ in range(num_tokens):
            answer = self.llm(new, past_key_values=cache, use_cache=True)
            cache, new = answer.past_key_values, answer.logits[:, -1:].argmax(-1)
            tokens = torch.cat([tokens, new], 1)
        self.maybe_free_model_hooks()
        return tokens


def writer() -> Writer:
    torch.manual_seed(0)
    sizes = {"vocab_size": 200, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 12}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    no_special = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": 0}
    return Writer(LlamaForCausalLM(LlamaConfig(**sizes, **heads, **no_special)).eval())


@pytest.fixture(scope="module")
def writers_plan() -> Plan:
    profile = vramtune.profile(writer(), gpu=sim_device(), progress=False)
    peak_bytes = choose_plan(profile, profile.device.usable_bytes).estimate.peak_bytes
    return choose_plan(profile, int(0.93 * peak_bytes))


@pytest.mark.parametrize("call", [1, 3, 5])
def test_a_call_that_ran_out_of_memory_with_keys_and_values_begins_again(
    sim: ModuleType, writers_plan: Plan, call: int
) -> None:
    want, pipe = writer().to("sim")().cpu(), writer()
    with install(pipe, writers_plan, device="sim") as runtime:
        pipe.llm.model.layers[3].register_forward_pre_hook(failing_once(in_vain(), call))
        assert torch.equal(pipe().cpu(), want)
        assert runtime.measured.num_out_of_memory == 1


def test_a_component_called_by_hand_with_keys_and_values_says_that_it_was_not_run_again(
    sim: ModuleType, writers_plan: Plan
) -> None:
    pipe = writer()
    with install(pipe, writers_plan, device="sim"):
        pipe.llm.model.layers[3].register_forward_pre_hook(failing_once(in_vain(), 3))
        tokens = torch.tensor([[1, 5, 7, 9]], device="sim")
        with torch.no_grad(), pytest.raises(torch.OutOfMemoryError) as raised:
            pipe.llm.generate(tokens, max_new_tokens=6, do_sample=False)
        assert raised.value.__notes__ == [NOT_REPEATABLE]
