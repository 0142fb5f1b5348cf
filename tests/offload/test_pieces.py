import torch

from vramtune.offload.groups import Group
from vramtune.offload.pieces import LEAST_PIECE_BYTES, flats, pieces
from vramtune.units import MIB


def groups_of(*sizes: int) -> list[Group]:
    return [Group(str(number), [], num_bytes=size) for number, size in enumerate(sizes)]


def test_small_groups_share_pieces_and_large_ones_have_their_own() -> None:
    sizes = [3 * MIB] * 30 + [LEAST_PIECE_BYTES, 1]
    found = [[group.num_bytes // MIB for group in together] for together in pieces(groups_of(*sizes))]
    assert found == [[3] * 22, [3] * 8 + [64], [0]]


def test_no_groups_take_no_piece() -> None:
    assert list(pieces([])) == []


def test_groups_lie_one_after_the_other_in_one_piece() -> None:
    found = [flat for _, flat in flats(groups_of(512, 1024, 0), torch.device("cpu"))]
    assert [flat.numel() for flat in found] == [512, 1024, 0]
    assert len({flat.untyped_storage().data_ptr() for flat in found}) == 1
    assert found[1].data_ptr() - found[0].data_ptr() == 512
