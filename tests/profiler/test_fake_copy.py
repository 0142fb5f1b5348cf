"""The copy that a call is followed on: its own structure, fake weights, and nothing of it in the pipeline."""

import functools
import gc
import random
import threading

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers.hooks import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import vramtune
from tests import tiny_pipelines
from vramtune.contract import modules_of
from vramtune.contract.refusals import refuse_layer_offload
from vramtune.profiler.fake_copy import cached_fakes_forgotten, fake_copy

MODE = FakeTensorMode(allow_non_fake_inputs=True)


def reachable(value, seen=None):
    """Everything in an object: attributes, slots, containers, closures, bound objects; by identity, with tensors' data."""
    seen = {} if seen is None else seen
    if id(value) in seen or isinstance(value, type | str | bytes | int | float | complex | bool | type(None)):
        return seen
    if type(value).__module__.partition(".")[0] in ("builtins", "tokenizers") and not isinstance(
        value, dict | list | tuple | set | type(reachable)
    ):
        return seen
    seen[id(value)] = value
    if isinstance(value, torch.Tensor):
        return seen
    inside = []
    if isinstance(value, dict):
        inside += [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        inside += value
    if callable(value) and getattr(value, "__closure__", None):
        inside += [cell.cell_contents for cell in value.__closure__ if cell != type(cell)()]
    inside += [getattr(value, name) for name in ("__self__", "__func__", "__wrapped__") if name in dir(value)]
    inside += list(getattr(value, "__dict__", {}).values())
    for item in inside:
        reachable(item, seen)
    return seen


def picture(pipe):
    """What is in a pipeline, in a form that can be compared."""
    found = reachable(pipe)
    return {
        key: (type(v).__name__, v.data_ptr() if isinstance(v, torch.Tensor) and not v.is_meta else _contents(v))
        for key, v in found.items()
    }


def _contents(value):
    if isinstance(value, dict):
        return [(id(k), id(v)) for k, v in value.items()]
    if isinstance(value, list | tuple):
        return [id(item) for item in value]
    return [(name, id(item)) for name, item in getattr(value, "__dict__", {}).items()]


@pytest.fixture
def pipe():
    return tiny_pipelines.build("sd15")


class Rotary:
    """As Z-Image's: a plain object that fills a table at its first call."""

    def __init__(self):
        self.table = None

    def __call__(self, x):
        if self.table is None:
            self.table = [torch.cos(torch.arange(4)) + 0 * x.sum()]
        return x * self.table[0].sum()


def with_rotary(pipe):
    original, pipe.unet.rotary = pipe.unet.forward, Rotary()
    pipe.unet.forward = lambda sample, *args, **kwargs: original(pipe.unet.rotary(sample), *args, **kwargs)
    return pipe


def test_a_copy_shares_no_module_and_no_weight_and_its_weights_are_fake(pipe):
    copied = fake_copy(pipe, MODE)
    for name, module in modules_of(copied).items():
        assert not set(module.modules()) & set(getattr(pipe, name).modules())
        assert all(isinstance(p, FakeTensor) for p in module.parameters())
    assert copied._execution_device.type == "cpu"
    assert copied.scheduler is not pipe.scheduler


def test_a_copy_of_meta_weights_is_on_the_cpu(pipe):
    pipe.unet.to("meta")
    assert fake_copy(pipe, MODE).unet.device.type == "cpu"
    assert pipe.unet.device.type == "meta"


def test_a_copy_keeps_ties_and_casts_with_them():
    encoder = fake_copy(tiny_pipelines.build("flux"), MODE).text_encoder_2
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight
    encoder.to(torch.float16)
    assert {p.dtype for p in encoder.parameters()} == {torch.float16}
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight


def test_a_method_exchanged_on_an_instance_calls_the_copy(pipe):
    copied = fake_copy(with_rotary(pipe), MODE)
    with MODE:
        copied.unet.forward(torch.ones(1, 4, 8, 8), 1, torch.ones(1, 2, 32))
    assert isinstance(copied.unet.rotary.table[0], FakeTensor)
    assert pipe.unet.rotary.table is None


def test_what_cannot_be_copied_is_shared_and_said(pipe, caplog):
    pipe.unet.lock = threading.Lock()
    copied = fake_copy(pipe, MODE)
    assert copied.unet.lock is pipe.unet.lock
    assert "lock is not copied but shared" in caplog.text


@pytest.mark.parametrize("name", ["sd15", "flux", "wan"])
def test_a_pipeline_is_the_same_all_through_after_its_call_was_followed(name):
    pipe = tiny_pipelines.build(name)
    if name == "sd15":
        with_rotary(pipe)
    before = picture(pipe)
    vramtune.profile(pipe, call_kwargs=tiny_pipelines.CALL[name], gpu="RTX 4060", progress=False)
    assert picture(pipe) == before
    assert not any(isinstance(value, FakeTensor) for value in reachable(pipe).values())


def test_the_next_call_is_right_where_a_forward_caches_tensors(pipe):
    wanted = tiny_pipelines.run(with_rotary(tiny_pipelines.build("sd15")), "sd15")
    pipe = with_rotary(pipe)
    call_kwargs = tiny_pipelines.CALL["sd15"] | {"num_inference_steps": 2}
    vramtune.profile(pipe, call_kwargs=call_kwargs, gpu="RTX 4060", progress=False)
    assert torch.equal(tiny_pipelines.run(pipe, "sd15"), wanted)


def test_a_pipeline_inside_a_pipeline_keeps_its_scheduler(pipe):
    inner = tiny_pipelines.build("sd15")
    vars(pipe)["prior_pipe"] = inner  # as the combined pipelines of Kandinsky and Stable Cascade
    copied = fake_copy(pipe, MODE)
    copied.prior_pipe.scheduler.set_timesteps(3)
    assert copied.prior_pipe is not inner
    assert len(inner.scheduler.timesteps) != 3
    assert copied.prior_pipe._progress_bar_config == {"disable": True}


def test_random_states_and_threads_are_as_before_after_a_call_was_followed(pipe):
    torch.manual_seed(1)
    expected = torch.rand(1), random.Random(2).random(), np.random.RandomState(3).rand()
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)
    num_threads = torch.get_num_threads()
    vramtune.profile(pipe, call_kwargs=tiny_pipelines.CALL["sd15"], gpu="RTX 4060", progress=False)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected
    assert torch.get_num_threads() == num_threads


def test_fakes_in_caches_of_functions_are_forgotten():
    @functools.lru_cache
    def table(size):
        return torch.ones(size), [size]

    @functools.lru_cache
    def number(size):
        return size

    number(3)
    with cached_fakes_forgotten(), MODE:
        assert isinstance(table(2)[0], FakeTensor)
    assert not isinstance(table(2)[0], FakeTensor)
    assert number.cache_info().currsize == 1


@functools.lru_cache
def frequencies(size):
    return torch.ones(size)


class Tables:
    @functools.lru_cache  # noqa: B019
    def table(self, size):
        return torch.ones(size)


@pytest.mark.parametrize("cached", [frequencies, Tables().table])
def test_fakes_in_caches_that_the_garbage_collector_was_told_to_leave_alone_are_forgotten(cached):
    gc.freeze()
    with cached_fakes_forgotten(), MODE:
        assert isinstance(cached(2), FakeTensor)
    assert not isinstance(cached(2), FakeTensor)


def test_a_model_offload_hook_stays_on_the_pipeline_and_is_off_the_copy(pipe):
    _, hook = cpu_offload_with_hook(pipe.unet, execution_device="cpu")
    before = picture(pipe)
    refuse_layer_offload(pipe)
    copied = fake_copy(pipe, MODE)
    assert not hasattr(copied.unet, "_hf_hook")
    assert copied.unet.forward.__func__ is type(pipe.unet).forward
    assert copied.unet.forward.__self__ is copied.unet
    assert picture(pipe) == before
    assert pipe.unet._hf_hook is hook.hook


def test_modules_inside_lists_and_hooks_are_the_copys(pipe):
    seen = []
    block = pipe.unet.mid_block
    block.helpers = [nn.Linear(2, 2), block]
    block.register_forward_pre_hook(lambda module, args: seen.append(module is block))
    copied = fake_copy(pipe, MODE).unet.mid_block
    assert copied.helpers[1] is copied
    assert copied.helpers[0] is not block.helpers[0]


def test_an_empty_container_that_two_attributes_share_is_shared_in_the_copy():
    pipe = tiny_pipelines.build("sd15")
    pipe.unet.cache = pipe.vae.cache = []
    copied = fake_copy(pipe, MODE)
    assert copied.unet.cache is copied.vae.cache
    assert copied.unet.cache is not pipe.unet.cache


@pytest.mark.parametrize("name", ["flux", "sdxl", "wan"])
def test_in_inference_mode_a_trace_is_what_it_is_outside(name):
    def traced():
        pipe = tiny_pipelines.build(name)
        return vramtune.trace(pipe, call_kwargs=tiny_pipelines.CALL[name], progress=False)

    with torch.inference_mode():
        inside = traced()
    assert inside == traced()


def attention_broadcast(pipe):
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 800),
        spatial_attention_block_identifiers=("transformer_blocks",),
        current_timestep_callback=lambda: pipe.current_timestep,  # of the pipeline itself, not of its copy
    )


@pytest.mark.parametrize(
    "config",
    [
        lambda pipe: FirstBlockCacheConfig(threshold=0.1),
        lambda pipe: TaylorSeerCacheConfig(cache_interval=2),
        attention_broadcast,
    ],
    ids=["first block", "taylor", "attention broadcast"],
)
def test_a_step_cache_is_switched_off_in_the_copy_alone(config):
    plain, pipe = tiny_pipelines.build("flux"), tiny_pipelines.build("flux")
    pipe.transformer.enable_cache(config(pipe))
    call_kwargs = tiny_pipelines.CALL["flux"]
    traced, expected = (vramtune.trace(each, call_kwargs=call_kwargs, progress=False) for each in (pipe, plain))
    assert traced.calls == expected.calls
    assert pipe.transformer.is_cache_enabled
