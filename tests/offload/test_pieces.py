import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vramtune.caching_allocator import reserved_peak_bytes
from vramtune.layout import LEAST_PIECE_BYTES, asked_bytes, kept_bytes, piece_ends, taken_bytes
from vramtune.offload.binding import BoundComponent, BoundPlacement
from vramtune.offload.groups import Group
from vramtune.offload.pieces import flats, new_piece, pieces
from vramtune.schema import Placement, WeightGroup
from vramtune.units import MIB


def groups_of(*sizes: int) -> list[Group]:
    return [Group(str(number), [], num_bytes=size) for number, size in enumerate(sizes)]


def placed(sizes: list[int], kept: tuple[int, ...], *, takes_segments: bool = True) -> BoundPlacement:
    """A placement that is active in the first of its stages."""
    planned = Placement(
        component="unet",
        methods=(),
        groups=tuple(WeightGroup(name=str(number), weight_bytes=size, modules=()) for number, size in enumerate(sizes)),
        active=tuple(stage == 0 for stage in range(len(kept))),
        kept=kept,
        num_slots=2,
        takes_segments=takes_segments,
    )
    component = BoundComponent("unet", nn.Module(), is_excluded=False)
    return BoundPlacement(planned, component, groups_of(*sizes), list(kept), [2] * len(kept))


def test_groups_that_stay_share_pieces_until_little_is_lost() -> None:
    sizes = [3 * MIB] * 30 + [LEAST_PIECE_BYTES, 33 * MIB, 33 * MIB, 1]
    assert piece_ends(sizes, (34, 34), is_root_apart=False) == [22, 31, 33, 34]


def test_a_group_just_above_whole_segments_is_joined_by_others() -> None:
    sizes = [32 * MIB + MIB // 10] * 20  # each by itself would take 34 MiB
    assert piece_ends(sizes, (20,), is_root_apart=False) == [16, 20]
    assert kept_bytes(tuple(sizes), (20,), is_root_apart=False) == (644 * MIB,)


def test_groups_that_come_and_go_together_share_a_piece_and_a_common_root_lies_apart() -> None:
    assert piece_ends([MIB] * 9, (7, 2, 0, 7), is_root_apart=False) == [2, 7]
    assert piece_ends([MIB] * 9, (7, 2, 0, 7), is_root_apart=True) == [1, 2, 7]


def test_no_groups_take_no_piece() -> None:
    assert piece_ends([MIB], (0, 0), is_root_apart=False) == []
    assert kept_bytes((MIB,), (0, 0), is_root_apart=False) == (0, 0)


@given(st.lists(st.integers(0, 200 * MIB), min_size=1, max_size=12), st.data())
def test_a_plan_and_the_runtime_count_what_the_allocator_takes_for_the_pieces(sizes: list[int], data) -> None:
    counts = st.integers(0, len(sizes))
    kept = (data.draw(st.integers(1, len(sizes))), *data.draw(st.lists(counts, max_size=3)))
    placement = placed(sizes, kept)
    for stage, count in enumerate(kept):
        slots = placement.planned.slot_bytes(stage)
        assert placement.held_bytes(stage) == placement.planned.kept_bytes(stage) + slots
        taken = 0
        for sharing in pieces(placement, placement.groups[:count]):
            num_bytes = sum(group.num_bytes for group in sharing)
            real = reserved_peak_bytes([(0, asked_bytes(num_bytes))]) if num_bytes else 0
            assert real == taken_bytes(num_bytes)
            taken += real
        assert placement.planned.kept_bytes(stage) == taken


def test_where_memory_is_not_taken_in_segments_bytes_are_counted() -> None:
    placement = placed([3 * MIB + 512, 5 * MIB, 7 * MIB], (2, 1), takes_segments=False)
    assert placement.planned.kept_bytes(0) == 8 * MIB + 512
    assert placement.held_bytes(0) == 15 * MIB + 512
    assert new_piece(3 * MIB, torch.device("cpu")).untyped_storage().nbytes() == 3 * MIB


def test_groups_lie_one_after_the_other_in_one_piece() -> None:
    found = [flat for _, flat in flats(groups_of(512, 1024, 0), torch.device("cpu"))]
    assert [flat.numel() for flat in found] == [512, 1024, 0]
    assert len({flat.untyped_storage().data_ptr() for flat in found}) == 1
    assert found[1].data_ptr() - found[0].data_ptr() == 512
