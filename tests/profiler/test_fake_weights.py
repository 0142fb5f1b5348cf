import functools
import random

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from tests import tiny_pipelines
from vramtune.contract import modules_of, refuse_layer_offload
from vramtune.profiler.fake_weights import on_fake_weights

MODE = FakeTensorMode(allow_non_fake_inputs=True)


def state_of(pipe):
    """All that predicting touches, by identity."""
    modules = [(name, module) for c in modules_of(pipe).values() for name, module in c.named_modules()]
    return {
        "pipe": {key: id(value) for key, value in vars(pipe).items()},
        "scheduler": {key: id(value) for key, value in vars(pipe.scheduler).items()},
        "modules": [(name, {key: id(value) for key, value in vars(m).items()}) for name, m in modules],
        "weights": [
            (name, id(tensor), tensor.dtype, tensor.data_ptr())
            for _, module in modules
            for name, tensor in (*module._parameters.items(), *module._buffers.items())
            if tensor is not None
        ],
    }


@pytest.fixture
def pipe():
    return tiny_pipelines.build("sd15")


def test_weights_are_fake_for_a_time_and_the_same_objects_afterwards(pipe):
    before = state_of(pipe)
    with on_fake_weights(pipe, MODE):
        assert all(isinstance(p, FakeTensor) for m in modules_of(pipe).values() for p in m.parameters())
        assert pipe._execution_device.type == "cpu"
    assert state_of(pipe) == before


def test_meta_weights_become_fakes_on_the_cpu_and_meta_again(pipe):
    pipe.unet.to("meta")
    with on_fake_weights(pipe, MODE):
        assert pipe.unet.device.type == "cpu"
    assert pipe.unet.device.type == "meta"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_changes_of_dtype_weights_and_attributes_are_undone_after_an_error(pipe, stop):
    def meddle():
        with on_fake_weights(pipe, MODE):
            pipe.vae.to(torch.float16)
            pipe.vae.enable_tiling()
            pipe.vae.cache = torch.ones(1)
            pipe.unet.conv_in.weight = nn.Parameter(torch.ones(1))
            pipe.scheduler.set_timesteps(3)
            pipe.unknown = "left behind"
            pipe.set_progress_bar_config(disable=False)
            raise stop

    before, scheduler = state_of(pipe), dict(vars(pipe.scheduler))
    with pytest.raises(stop):
        meddle()
    assert state_of(pipe) == before
    assert vars(pipe.scheduler) == scheduler


def test_a_cast_of_fake_weights_changes_their_dtype_and_keeps_ties(pipe):
    encoder = tiny_pipelines.build("flux").text_encoder_2
    pipe.text_encoder = encoder
    with on_fake_weights(pipe, MODE):
        encoder.to(torch.float16)
        assert {p.dtype for p in encoder.parameters()} == {torch.float16}
        assert encoder.shared.weight is encoder.encoder.embed_tokens.weight
        encoder.encoder.block[0].float()
        assert encoder.encoder.block[0].layer[0].SelfAttention.q.weight.dtype == torch.float32
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


def test_random_states_are_restored(pipe):
    torch.manual_seed(1)
    expected = torch.rand(1), random.Random(2).random(), np.random.RandomState(3).rand()
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)
    with on_fake_weights(pipe, MODE):
        torch.rand(5), random.random(), np.random.rand()
    assert (torch.rand(1), random.random(), np.random.rand()) == expected


def test_the_number_of_threads_is_restored(pipe):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with on_fake_weights(pipe, MODE):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_fakes_in_the_caches_of_methods_are_forgotten(pipe):
    class Rotary(nn.Module):
        @functools.lru_cache  # noqa: B019 (as diffusers' models do)
        def table(self):
            return self.weight * 1

    pipe.unet.rotary = Rotary()
    pipe.unet.rotary.weight = nn.Parameter(torch.ones(2))
    with on_fake_weights(pipe, MODE):
        assert isinstance(pipe.unet.rotary.table(), FakeTensor)
    assert not isinstance(pipe.unet.rotary.table(), FakeTensor)


def test_a_model_offload_hook_is_off_for_a_time_and_back_afterwards(pipe):
    _, hook = cpu_offload_with_hook(pipe.unet, execution_device="cpu")
    before = state_of(pipe)
    refuse_layer_offload(pipe)
    with on_fake_weights(pipe, MODE):
        assert not hasattr(pipe.unet, "_hf_hook")
        assert pipe.unet.forward.__func__ is type(pipe.unet).forward
    assert state_of(pipe) == before
    assert pipe.unet._hf_hook is hook.hook
