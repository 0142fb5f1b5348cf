"""What users and their other libraries do with a tuned pipeline and its components."""

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate.hooks import remove_hook_from_module
from torch import nn

from tests import tiny_pipelines
from tests.offload.state import output, same, state_of, tensors, values
from tests.offload.tuned_pipelines import (
    held_bytes,
    planned,
    profiled,
    resident_bytes,
    smallest_gib,
    tuned,
    weight_bytes,
)
from vramtune import autotune
from vramtune.contract import modules_of
from vramtune.errors import UsageError
from vramtune.offload.install import install
from vramtune.tuner.search import choose_plan
from vramtune.units import GIB

# ---------------------------------------------------------------------------------------------------
# Inference mode


@pytest.mark.parametrize("around", ["install", "call", "remove"])
def test_parameters_never_become_inference_tensors(
    sim: ModuleType, expected: dict[str, torch.Tensor], around: str
) -> None:
    pipe = tiny_pipelines.build("flux")
    with torch.inference_mode(around == "install"):
        runtime = install(pipe, planned("flux"), device="sim")
    with torch.inference_mode(around == "call"):
        pipe.transformer.proj_out.weight.data = pipe.transformer.proj_out.weight.data.clone()
        tiny_pipelines.run(pipe, "flux", callback_on_step_end=none_is_inference)
        if around == "call":
            pipe.transformer.proj_out.weight.data = pipe.transformer.proj_out.weight.data * 1
    none_is_inference(pipe, 0, None, {})
    assert torch.equal(output(pipe, "flux"), expected["flux"])
    with torch.inference_mode(around == "remove"):
        runtime.remove()
    none_is_inference(pipe, 0, None, {})


def test_all_of_a_tuned_life_may_be_in_inference_mode(
    sim: ModuleType, no_garbage: None, expected: dict[str, torch.Tensor]
) -> None:
    """`autotune`, which measures and profiles first, the calls, and `remove`; whole, and with all streamed that can be."""
    pipe = tiny_pipelines.build("flux")
    state, weights = state_of(pipe), values(pipe)
    settings = tiny_pipelines.CALL["flux"] | {"num_inference_steps": 2}
    with torch.inference_mode():
        tuned = autotune(pipe, device="sim", call_kwargs=settings, progress=False)
        least = choose_plan(tuned.profile, int(smallest_gib(tuned.profile) * GIB))
        for _ in range(2):
            none_is_inference(pipe, 0, None, {})
            image = tiny_pipelines.run(pipe, "flux", callback_on_step_end=none_is_inference)
            assert torch.equal(image.cpu(), expected["flux"])
            pipe.vae.decode(torch.ones(1, 1, 16, 16, device="sim"))
            none_is_inference(pipe, 0, None, {})
            tuned.remove()
            none_is_inference(pipe, 0, None, {})
            assert same(values(pipe), weights)
            assert state_of(pipe)["weights"] == state["weights"]
            tuned = install(pipe, least, device="sim")
        tuned.remove()


def none_is_inference(pipe: Any, step: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:
    assert [path for path, tensor in tensors(pipe) if tensor.is_inference() and "proj_out" not in path] == []
    return kwargs


# ---------------------------------------------------------------------------------------------------
# Shared components


def sharing(pipe: Any) -> Any:
    """Another pipeline over the same components."""
    other = type(pipe)(**pipe.components)
    other.set_progress_bar_config(disable=True)
    return other


def test_a_second_plan_over_shared_components_is_refused_and_the_first_goes_on(
    sim: ModuleType, expected: dict[str, torch.Tensor]
) -> None:
    first = tiny_pipelines.build("flux")
    second = sharing(first)
    untouched = state_of(first)
    with install(first, planned("flux"), device="sim"):
        state, held = state_of(first), held_bytes()
        with pytest.raises(UsageError, match="under the plan of another pipeline"):
            install(second, planned("flux"), device="sim")
        assert (state_of(first), held_bytes()) == (state, held)
        assert torch.equal(output(second, "flux"), expected["flux"])
        assert torch.equal(output(first, "flux"), expected["flux"])
        assert held_bytes() == held
    assert state_of(first) == untouched
    with install(second, planned("flux"), device="sim"):
        assert torch.equal(output(second, "flux"), expected["flux"])


def test_components_under_another_pipelines_stock_offload_are_refused(
    sim: ModuleType, expected: dict[str, torch.Tensor]
) -> None:
    first = tiny_pipelines.build("flux")
    second = sharing(first)
    first.enable_model_cpu_offload(device="sim")
    state = state_of(second)
    with pytest.raises(UsageError, match="offloaded by another pipeline"):
        install(second, planned("flux"), device="sim")
    assert state_of(second) == state
    assert torch.equal(output(first, "flux"), expected["flux"])


def test_stock_offload_of_a_pipeline_that_shares_components_is_noticed_at_the_next_call(
    sim: ModuleType, expected: dict[str, torch.Tensor]
) -> None:
    first = tiny_pipelines.build("flux")
    second = sharing(first)
    modules = state_of(first)["modules"]
    runtime = install(first, planned("flux"), device="sim")
    output(first, "flux")
    second.enable_model_cpu_offload(device="sim")
    assert torch.equal(output(second, "flux"), expected["flux"])
    with pytest.raises(UsageError, match="put under something else's offloading"):
        output(first, "flux")
    assert torch.equal(output(second, "flux"), expected["flux"])
    second.remove_all_hooks()
    assert torch.equal(output(first, "flux"), expected["flux"])
    runtime.remove()
    assert state_of(first)["modules"] == modules
    assert {tensor.device.type for _, tensor in tensors(first)} == {"cpu"}


# ---------------------------------------------------------------------------------------------------
# Components called by hand


def by_hand(pipe: Any) -> dict[str, Callable[[], Any]]:
    """Calls of components of FLUX.1, each by a name."""
    tokens = torch.ones(1, 4, dtype=torch.int64, device="sim")
    image, states = (torch.ones(shape, device="sim") for shape in ((1, 3, 32, 32), (1, 4, 32)))
    return {
        "clip": lambda: pipe.text_encoder(tokens).pooler_output,
        "t5": lambda: pipe.text_encoder_2(tokens)[0],
        "vae": lambda: pipe.vae(image).sample,
        "vae.encode": lambda: pipe.vae.encode(image).latent_dist.mode(),
        "vae.decode": lambda: pipe.vae.decode(torch.ones(1, 1, 16, 16, device="sim")).sample,
        "prompt": lambda: pipe.encode_prompt("a cat", None, max_sequence_length=48)[0],
        "transformer": lambda: (
            pipe.transformer(
                hidden_states=torch.ones(1, 16, 4, device="sim"),
                encoder_hidden_states=states,
                pooled_projections=torch.ones(1, 32, device="sim"),
                timestep=torch.ones(1, device="sim"),
                img_ids=torch.zeros(16, 3, device="sim"),
                txt_ids=torch.zeros(4, 3, device="sim"),
            ).sample
        ),
    }


@pytest.mark.parametrize("fraction", [0.4, pytest.param(0.7, marks=pytest.mark.slow)])
def test_a_component_called_by_hand_leaves_nothing_behind(
    sim: ModuleType, no_garbage: None, expected: dict[str, torch.Tensor], fraction: float
) -> None:
    untuned = by_hand(tiny_pipelines.build("flux").to("sim"))
    with torch.no_grad():
        wanted = {name: call().cpu() for name, call in untuned.items()}
    del untuned
    start = held_bytes()
    with tuned("flux", fraction) as (pipe, runtime), torch.no_grad():
        assert held_bytes() - start == resident_bytes(runtime.plan)
        calls = by_hand(pipe)
        rest = held_bytes()
        for _ in range(2):
            for name, call in calls.items():
                assert torch.equal(call().cpu(), wanted[name]), name
                assert held_bytes() == rest, name
                assert sorted(devices_of_weights(pipe)) == sorted(devices_at_rest(runtime)), name
            assert torch.equal(output(pipe, "flux"), expected["flux"])
            assert held_bytes() == rest
        del calls, call
    assert held_bytes() == start


def devices_of_weights(pipe: Any) -> list[str]:
    return [parameter.device.type for module in modules_of(pipe).values() for parameter in module.parameters()]


def devices_at_rest(runtime: Any) -> list[str]:
    groups = {group: component for component in runtime._binding.components for group in component.groups}
    staying = {group for component in groups.values() for group in component.resident_groups}
    return [
        "sim" if group in staying else "cpu"
        for group in groups
        for held in group.held
        if isinstance(held.tensor, nn.Parameter)
    ]


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError, ValueError])
def test_a_component_called_by_hand_that_fails_leaves_nothing_behind(
    sim: ModuleType, no_garbage: None, expected: dict[str, torch.Tensor], error: type[BaseException]
) -> None:
    def fail(*_: object) -> None:
        raise error

    start = held_bytes()
    with tuned("flux", 0.5) as (pipe, runtime):
        handle = pipe.text_encoder_2.encoder.block[1].register_forward_pre_hook(fail)
        with pytest.raises(error), torch.no_grad():
            by_hand(pipe)["t5"]()
        handle.remove()
        assert held_bytes() - start <= resident_bytes(runtime.plan)
        assert torch.equal(output(pipe, "flux"), expected["flux"])


def test_a_pipeline_that_shares_components_keeps_weights_from_step_to_step(sim: ModuleType, no_garbage: None) -> None:
    """Its components are not called by hand, though no plan is on it."""

    def count(pipe: Any, step: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:
        held.append(held_bytes())
        return kwargs

    held: list[int] = []
    with tuned("flux", 0.7) as (pipe, runtime):
        output(sharing(pipe), "flux", callback_on_step_end=count)
        assert min(held) > resident_bytes(runtime.plan)


def test_a_weight_written_in_a_callback_of_a_pipeline_that_shares_it_counts_from_the_next_step_on(
    sim: ModuleType, no_garbage: None
) -> None:
    def write(pipe: Any, step: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:
        for parameter in pipe.transformer.parameters():
            parameter.mul_(1.25)
        return kwargs

    expected = output(tiny_pipelines.build("flux").to("sim"), "flux", callback_on_step_end=write)
    with tuned("flux", 0.4, copy_to_compute=5) as (pipe, _):
        assert torch.equal(output(sharing(pipe), "flux", callback_on_step_end=write), expected)


# ---------------------------------------------------------------------------------------------------
# Copies


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, pickle.dumps], ids=lambda f: f.__name__)
def test_a_tuned_pipeline_is_not_copied_and_holds_no_more_for_it(sim: ModuleType, duplicate: Any) -> None:
    with tuned("flux") as (pipe, _):
        held, state = held_bytes(), state_of(pipe)
        with pytest.raises(UsageError, match=r"tuned and cannot be copied or pickled.*remove\(\)"):
            duplicate(pipe)
        assert (held_bytes(), state_of(pipe)) == (held, state)
    assert copy.deepcopy(pipe).transformer is not pipe.transformer


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickle.dumps], ids=lambda f: f.__name__)
def test_a_component_under_a_plan_is_not_copied(sim: ModuleType, duplicate: Any) -> None:
    with tuned("flux") as (pipe, _):
        held = held_bytes()
        for component in modules_of(pipe).values():
            with pytest.raises(UsageError, match="is under a plan and cannot be copied"):
                duplicate(component)
        with pytest.raises(UsageError, match="'vae' is under a plan"):
            duplicate({"inside": nn.ModuleList([pipe.vae])})
        assert held_bytes() == held
    duplicate(pipe.vae)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copied_part_of_a_component_has_no_plan(sim: ModuleType, duplicate: Any) -> None:
    with tuned("flux", 0.4) as (pipe, _):
        block = duplicate(pipe.transformer.transformer_blocks[0].ff)
    hidden = torch.ones(1, 4, 16, device=next(block.parameters()).device)
    hidden = hidden[..., :1].expand(1, 4, next(block.parameters()).shape[1])
    with torch.no_grad():
        assert torch.equal(block(hidden), pipe.transformer.transformer_blocks[0].ff(hidden))


def test_sequential_offload_says_that_it_takes_over(sim: ModuleType, expected: dict[str, torch.Tensor]) -> None:
    pipe = tiny_pipelines.build("flux")
    runtime = install(pipe, planned("flux"), device="sim")
    output(pipe, "flux")
    with pytest.warns(UserWarning, match="takes over, and the plan is removed"):
        pipe.enable_sequential_cpu_offload(device="sim")
    assert not runtime.is_installed
    assert torch.equal(output(pipe, "flux"), expected["flux"])


# ---------------------------------------------------------------------------------------------------
# Loaders


def test_after_a_loader_that_failed_the_plan_is_back_at_the_next_call(
    sim: ModuleType, no_garbage: None, expected: dict[str, torch.Tensor]
) -> None:
    """The loader takes the hooks off, fails, and does not put them back."""
    start = held_bytes()
    with tuned("flux") as (pipe, runtime):
        with pytest.raises(RuntimeError, match="size mismatch"):
            load_lora(pipe, "flux", wrong=True)
        assert torch.equal(output(pipe, "flux"), expected["flux"])
        assert runtime.measured is not None
        assert held_bytes() - start == resident_bytes(runtime.plan)
        assert all(hasattr(module, "_hf_hook") for module in modules_of(pipe).values())


def load_lora(pipe: Any, name: str, *, wrong: bool) -> None:
    from diffusers.loaders.lora_base import _func_optionally_disable_offloading

    _func_optionally_disable_offloading(pipe)
    weight = pipe.transformer.proj_out.weight
    if wrong:
        pipe.transformer.proj_out.load_state_dict({"weight": torch.zeros(1, *weight.shape)}, strict=False)
    pipe.enable_model_cpu_offload()


# ---------------------------------------------------------------------------------------------------
# What comes in later


class Large(nn.Module):
    """A component that needs most of what the plan gives to weights."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_bytes // 4), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight.sum()


def test_residents_give_way_to_a_component_put_in_later(sim: ModuleType, no_garbage: None) -> None:
    start = held_bytes()
    with tuned("flux", 0.9) as (pipe, runtime):
        want = output(pipe, "flux")
        peak_bytes = runtime.plan.estimate.peak_bytes
        added = Large(int(0.8 * weight_bytes("flux")))
        pipe.image_encoder = added
        sim.set_capacity(start + peak_bytes)
        assert torch.equal(output(pipe, "flux"), want)
        with torch.no_grad():
            pipe.image_encoder(torch.zeros(4))
        assert torch.equal(output(pipe, "flux"), want)
        assert held_bytes() - start < resident_bytes(runtime.plan)


def test_out_of_memory_while_a_component_comes_in_leaves_a_pipeline_that_works(
    sim: ModuleType, no_garbage: None
) -> None:
    with tuned("flux", 1.0) as (pipe, _):
        want = output(pipe, "flux")
        pipe.transformer = copy_of(tiny_pipelines.build("flux").transformer)
        rest = held_bytes()
        sim.set_capacity(rest - sum(p.nbytes for p in pipe.transformer.parameters()) // 2)
        with pytest.raises(torch.OutOfMemoryError):
            output(pipe, "flux", height=256, width=256)
        sim.set_capacity(sim.DEFAULT_CAPACITY_BYTES)
        assert torch.equal(output(pipe, "flux"), want)


def copy_of(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module)


def test_fused_projections_and_channels_last_are_taken_in(sim: ModuleType, no_garbage: None) -> None:
    def change(pipe: Any) -> None:
        pipe.fuse_qkv_projections()
        pipe.unet.to(memory_format=torch.channels_last)

    untuned = tiny_pipelines.build("sdxl")
    change(untuned)
    expected = output(untuned.to("sim"), "sdxl")
    del untuned
    start = held_bytes()
    with tuned("sdxl", 0.5) as (pipe, runtime):
        output(pipe, "sdxl")
        change(pipe)
        for _ in range(2):
            assert torch.equal(output(pipe, "sdxl"), expected)
        assert held_bytes() - start <= resident_bytes(runtime.plan)


def test_an_exchanged_component_of_another_size_is_loaded_whole(sim: ModuleType, no_garbage: None) -> None:
    larger = tiny_pipelines.flux(num_layers=3).transformer
    untuned = tiny_pipelines.build("flux")
    untuned.transformer = copy_of(larger)
    expected = output(untuned.to("sim"), "flux")
    del untuned
    with tuned("flux", 0.5) as (pipe, _):
        output(pipe, "flux")
        pipe.transformer = larger
        for _ in range(2):
            assert torch.equal(output(pipe, "flux"), expected)


def test_a_component_that_comes_from_under_another_plan_is_refused_before_anything_is_touched(
    sim: ModuleType, expected: dict[str, torch.Tensor]
) -> None:
    with tuned("flux") as (first, _), tuned("flux") as (second, _):
        own = first.vae
        first.vae = second.vae
        state = state_of(second)
        with pytest.raises(UsageError, match="'vae' is under the plan of another pipeline"):
            output(first, "flux")
        assert state_of(second) == state
        first.vae = own
        assert torch.equal(output(first, "flux"), expected["flux"])


# ---------------------------------------------------------------------------------------------------
# Out of memory between components


def test_out_of_memory_in_the_pipelines_own_lines_runs_the_call_again(
    sim: ModuleType, no_garbage: None, monkeypatch: pytest.MonkeyPatch, expected: dict[str, torch.Tensor]
) -> None:
    with tuned("flux", 0.6) as (pipe, runtime):
        fail_once(pipe, monkeypatch)
        assert torch.equal(output(pipe, "flux"), expected["flux"])
        assert runtime.measured.num_out_of_memory == 1
        assert runtime.overrun_bytes
        assert torch.equal(output(pipe, "flux"), expected["flux"])
        assert runtime.measured.num_out_of_memory == 0


def test_a_call_with_a_callback_is_not_run_again_but_the_next_has_more_room(
    sim: ModuleType, no_garbage: None, monkeypatch: pytest.MonkeyPatch, expected: dict[str, torch.Tensor]
) -> None:
    steps: list[int] = []

    def callback(pipe: Any, step: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        return kwargs

    with tuned("flux", 0.6) as (pipe, runtime):
        fail_once(pipe, monkeypatch)
        with pytest.raises(torch.OutOfMemoryError) as raised:
            output(pipe, "flux", callback_on_step_end=callback)
        assert any("not run again" in note for note in raised.value.__notes__)
        assert steps == [0, 1]
        assert runtime.overrun_bytes
        del raised
        assert torch.equal(output(pipe, "flux"), expected["flux"])


def fail_once(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory behind the last step, as the pipeline unpacks its latents."""
    original, failures = type(pipe)._unpack_latents, [torch.OutOfMemoryError("for the test")]

    def unpack(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return original(*args)

    monkeypatch.setattr(pipe, "_unpack_latents", unpack, raising=False)


# ---------------------------------------------------------------------------------------------------
# Weights that hooks compute


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_what_weight_norm_computes_after_tuning_is_let_go(sim: ModuleType, no_garbage: None) -> None:
    def normed(pipe: Any) -> list[nn.Module]:
        modules = [m for m in pipe.vae.decoder.modules() if isinstance(m, nn.Conv2d)]
        return [torch.nn.utils.weight_norm(module) for module in modules]

    untuned = tiny_pipelines.build("sdxl")
    normed(untuned)
    expected = output(untuned.to("sim"), "sdxl")
    del untuned
    start, pipe, most = held_bytes(), tiny_pipelines.build("sdxl"), 0
    with tuned("sdxl", 0.4, pipe=pipe) as (_, runtime):
        modules = normed(pipe)

        def count(*_: object) -> None:
            nonlocal most
            most = max(most, sum(vars(module)["weight"].device.type == "sim" for module in modules))

        for module in modules:
            module.register_forward_hook(count)
        for _ in range(2):
            assert torch.equal(output(pipe, "sdxl"), expected)
            assert {vars(module)["weight"].device.type for module in modules} == {"cpu"}
        assert held_bytes() - start <= resident_bytes(runtime.plan)
    assert 0 < most < len(modules)
    assert {vars(module)["weight"].device.type for module in modules} == {"cpu"}


# ---------------------------------------------------------------------------------------------------
# Methods that someone keeps


@pytest.mark.parametrize("is_tuned_again", [False, True])
def test_methods_kept_from_a_plan_before_are_what_the_component_has_now(
    sim: ModuleType, expected: dict[str, torch.Tensor], is_tuned_again: bool
) -> None:
    pipe = tiny_pipelines.build("flux")
    with tuned("flux", pipe=pipe):
        forward, decode, to = pipe.transformer.forward, pipe.vae.decode, pipe.vae.to
    latents = torch.ones(1, 1, 4, 4)
    with torch.no_grad():
        want = pipe.vae.decode(latents).sample
        assert torch.equal(decode(latents).sample, want)
    pipe.transformer.forward = forward
    if is_tuned_again:
        with tuned("flux", pipe=pipe) as (_, runtime):
            with torch.no_grad():
                assert torch.equal(decode(latents).sample.cpu(), want)
            places = [weight.device for weight in pipe.vae.parameters()]
            assert [weight.device for weight in to("sim").parameters()] == places
            assert torch.equal(output(pipe, "flux"), expected["flux"])
            assert runtime.is_installed
    else:
        to("sim")
        assert {weight.device.type for weight in pipe.vae.parameters()} == {"sim"}
        assert torch.equal(output(pipe.to("sim"), "flux"), expected["flux"])


def test_a_method_exchanged_with_one_kept_from_before_a_loader_runs_under_the_plan(
    sim: ModuleType, expected: dict[str, torch.Tensor]
) -> None:
    with tuned("flux") as (pipe, _):
        kept = pipe.transformer.forward
        remove_hook_from_module(pipe.transformer)  # as a loader does, which then asks for the plan again
        pipe.enable_model_cpu_offload()
        pipe.transformer.forward = lambda *args, **kwargs: kept(*args, **kwargs)
        assert torch.equal(output(pipe, "flux"), expected["flux"])


# ---------------------------------------------------------------------------------------------------
# A default device


@contextmanager
def default_device(how: str) -> Iterator[None]:
    if how == "with":
        with torch.device("sim"):
            yield
        return
    torch.set_default_device("sim")
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("how", ["set", "with"])
def test_all_of_a_tuned_life_may_be_under_a_default_device(
    sim: ModuleType, expected: dict[str, torch.Tensor], how: str
) -> None:
    pipe = tiny_pipelines.build("flux")
    before = values(pipe)
    plans = [planned("flux"), planned("flux", lockable_fraction=0.3)]  # all that moves page-locked, and some in place
    profiled("flux")
    with default_device(how):
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)  # makes its tables there
        with autotune(pipe, call_kwargs=tiny_pipelines.CALL["flux"], device="sim", progress=False):
            assert torch.equal(output(pipe, "flux"), expected["flux"])
        for plan in plans:
            with install(pipe, plan, device="sim"):
                assert torch.equal(output(pipe, "flux"), expected["flux"])
                pipe.vae.to(torch.float64).to(torch.float32)
                assert torch.equal(output(pipe, "flux"), expected["flux"])
    assert same(values(pipe), before)
    assert {tensor.device.type for _, tensor in tensors(pipe)} == {"cpu"}
