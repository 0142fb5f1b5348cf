import pytest

from tests.profiles import MIB
from vramtune.schema import Weights
from vramtune.tuner.passing import passing_bytes, staying_bytes, tensor_bytes

BIAS = 6 * 1024


@pytest.mark.parametrize(
    ("num_bytes", "num_tensors", "expected"),
    [
        (0, 0, ()),
        (47 * MIB, 1, (47 * MIB,)),
        (18 * MIB + BIAS, 2, (18 * MIB, BIAS)),  # 3072 x 3072 in half precision: a segment of 18 MiB, not of 20
        (2 * BIAS, 2, (2 * BIAS,)),  # a norm's weight and bias, which share a small segment either way
    ],
)
def test_a_layer_is_a_matrix_and_what_is_small(num_bytes: int, num_tensors: int, expected: tuple[int, ...]) -> None:
    weights = Weights(num_bytes=num_bytes, allocated_bytes=num_bytes, num_tensors=num_tensors)
    assert tensor_bytes(weights) == expected


def test_weights_that_stay_take_whole_segments() -> None:
    """Two of 8 MiB find room in 20, the third takes 20 more; 12.5 MiB take 14, a bias 2."""
    assert staying_bytes((8 * MIB,) * 3) == 40 * MIB
    assert staying_bytes((25 * MIB // 2, BIAS)) == 16 * MIB


def test_weights_that_pass_take_what_those_that_are_there_together_take() -> None:
    layers = ((12 * MIB, BIAS),) * 5
    assert passing_bytes(layers, is_ahead=False) == 14 * MIB
    assert passing_bytes(layers, is_ahead=True) == 26 * MIB


def test_a_large_one_leaves_its_segment_to_the_smaller_ones_behind_it() -> None:
    layers = ((48 * MIB,), *[(8 * MIB,)] * 4)
    assert passing_bytes(layers, is_ahead=False) == 48 * MIB
    assert passing_bytes(layers, is_ahead=True) == 68 * MIB
