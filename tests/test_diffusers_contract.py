"""What vramtune relies on in diffusers: pipelines whose weights something else places are refused."""

import pytest
import torch
from accelerate import cpu_offload
from diffusers.hooks import apply_group_offloading

from tests import tiny_pipelines
from vramtune.contract.refusals import refuse_layer_offload
from vramtune.errors import UsageError


@pytest.fixture
def pipe():
    return tiny_pipelines.build("sd15")


def test_a_component_under_sequential_offload_is_refused(pipe):
    cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    with pytest.raises(UsageError, match=r"'unet' is under sequential CPU offload.*remove_all_hooks"):
        refuse_layer_offload(pipe)


def test_a_component_under_group_offload_is_refused(pipe):
    apply_group_offloading(pipe.unet, onload_device=torch.device("cpu"), offload_type="leaf_level")
    with pytest.raises(UsageError, match="'unet' is under diffusers' group offloading"):
        refuse_layer_offload(pipe)
