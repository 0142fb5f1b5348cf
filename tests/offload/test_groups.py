import pytest
import torch
from torch import nn

from vramtune.offload.groups import collect, is_any_replaced


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("which", [0, 1])
def test_a_tied_weight_is_held_once_and_seen_to_be_replaced_under_either_name(which: int, bias: bool) -> None:
    layers = [nn.Linear(4, 4, bias=bias), nn.Linear(4, 4, bias=bias)]
    layers[1].weight = layers[0].weight
    held, *_ = collect(layers, {})
    assert not is_any_replaced([held])
    layers[which].weight = nn.Parameter(torch.ones(4, 4))
    assert is_any_replaced([held])
