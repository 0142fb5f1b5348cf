import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.profiles import MIB, component, profiles
from tests.tuner.test_search import budget_between, small
from vramtune.errors import FileError
from vramtune.schema import (
    SCHEMA_VERSION,
    Comparison,
    Frontier,
    Placement,
    Plan,
    Profile,
    WeightGroup,
    from_json,
    to_json,
)
from vramtune.tuner.comparison import compare_modes
from vramtune.tuner.frontier import trace_frontier
from vramtune.tuner.problem import pose
from vramtune.tuner.search import choose_plan
from vramtune.tuner.simulate import timeline

GROUPS = tuple(WeightGroup(name=str(n), weight_bytes=n * MIB, modules=()) for n in (1, 8, 4, 2))


def placement(kept: tuple[int, ...], active: tuple[bool, ...], num_slots: int = 3) -> Placement:
    return Placement(component="m", methods=(), groups=GROUPS, active=active, kept=kept, num_slots=num_slots)


class TestJson:
    @settings(max_examples=30, deadline=None)
    @given(profiles(), st.floats(0, 1))
    def test_profiles_and_plans_come_back_equal(self, profile: Profile, fraction: float) -> None:
        plan = choose_plan(profile, budget_between(pose(profile), fraction))
        assert from_json(Profile, to_json(profile)) == profile
        assert from_json(Plan, to_json(plan)) == plan

    def test_comparisons_frontiers_and_timelines_come_back_equal(self) -> None:
        plan = choose_plan(small(), 250 * MIB)
        for noun in (compare_modes(small(), 250 * MIB), trace_frontier(small()), timeline(small(), plan)):
            assert from_json(type(noun), to_json(noun)) == noun

    def test_a_plan_is_saved_and_loaded(self, tmp_path: Path) -> None:
        plan = choose_plan(small(), 250 * MIB)
        plan.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == plan

    def test_a_profile_is_saved_and_loaded_and_is_not_taken_for_a_plan(self, tmp_path: Path) -> None:
        small().save(tmp_path / "profile.json")
        assert Profile.load(tmp_path / "profile.json") == small()
        with pytest.raises(FileError, match="holds a Profile"):
            Plan.load(tmp_path / "profile.json")


class TestForeignFiles:
    @pytest.fixture
    def envelope(self) -> dict:
        return json.loads(to_json(choose_plan(small(), 250 * MIB)))

    @pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"[]", b"{}", b'{"kind": 3}', b"not json"])
    def test_a_file_that_vramtune_did_not_write_is_refused(self, text: bytes) -> None:
        with pytest.raises(FileError, match=r"Expected a vramtune Plan; this is not a vramtune file: "):
            from_json(Plan, text)

    def test_a_file_of_another_kind_is_refused(self, envelope: dict) -> None:
        with pytest.raises(FileError, match=r"Expected a vramtune Profile; this file holds a Plan"):
            from_json(Profile, json.dumps(envelope))

    @pytest.mark.parametrize("version", [2, SCHEMA_VERSION + 1])
    def test_a_file_of_another_version_is_refused_with_what_to_do(
        self, envelope: dict, version: int, tmp_path: Path
    ) -> None:
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(envelope | {"schema_version": version}))
        expected = f"has schema version {version}; this vramtune reads version {SCHEMA_VERSION}. Make a new one. "
        with pytest.raises(FileError, match=expected + "`vramtune plan --save` writes a Plan"):
            Plan.load(path)

    def test_a_file_with_a_missing_field_is_refused(self, envelope: dict) -> None:
        del envelope["body"]["stages"]
        with pytest.raises(FileError, match="This Plan is damaged"):
            from_json(Plan, json.dumps(envelope))

    def test_a_file_with_a_count_that_no_pipeline_could_follow_is_refused(self, envelope: dict) -> None:
        envelope["body"]["placements"][0]["kept"][0] = 99
        with pytest.raises(FileError, match="99"):
            from_json(Plan, json.dumps(envelope))

    def test_a_profile_with_more_tensors_than_could_be_counted_one_by_one_is_refused(self) -> None:
        envelope = json.loads(to_json(small()))
        envelope["body"]["components"][0]["layers"][0]["parameters"]["num_tensors"] = 2**31
        with pytest.raises(FileError, match="This Profile is damaged"):
            from_json(Profile, json.dumps(envelope))

    def test_a_file_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match=r"missing\.json"):
            Plan.load(tmp_path / "missing.json")

    def test_a_file_of_something_else_is_named(self, tmp_path: Path) -> None:
        small().save(tmp_path / "profile.json")
        with pytest.raises(FileError, match=r"profile\.json.*holds a Profile.*`vramtune plan --save`"):
            Plan.load(tmp_path / "profile.json")

    def test_a_profile_whose_segments_point_nowhere_is_refused(self) -> None:
        text = json.loads(to_json(small()))
        text["body"]["stages"][0]["activities"][0]["segments"][0]["layer"] = 77
        with pytest.raises(FileError, match="names no layer"):
            from_json(Profile, json.dumps(text))


class TestPlacement:
    def test_its_role_follows_from_what_is_kept_and_whether_it_runs(self) -> None:
        assert placement((4, 4), (True, False)).role(0) == "resident"
        assert placement((4, 1), (True, False)).role(0) == "offloaded"
        assert placement((4, 1), (True, False)).role(1) == "idle"
        assert placement((2, 2), (True, True)).role(0) == "streamed"

    def test_slots_are_as_large_as_the_largest_streamed_group_and_no_more_than_all(self) -> None:
        assert placement((2, 2), (True, False), num_slots=1).slot_bytes(0) == 4 * MIB
        assert placement((2, 2), (True, False), num_slots=3).slot_bytes(0) == 6 * MIB
        assert placement((2, 2), (True, False)).slot_bytes(1) == 0
        assert placement((4, 4), (True, True)).slot_bytes(0) == 0

    def test_only_groups_kept_in_every_stage_are_resident(self) -> None:
        one = placement((4, 2, 3), (True, False, True))
        assert one.num_resident == 2
        assert one.kept_bytes(1) == 9 * MIB

    @pytest.mark.parametrize(
        ("kept", "active"), [((5,), (True,)), ((-1,), (False,)), ((0,), (True,)), ((1, 1), (True,))]
    )
    def test_impossible_counts_are_refused(self, kept, active) -> None:
        with pytest.raises(ValueError, match="placement of 'm'"):
            placement(kept, active)


def test_a_comparison_is_not_taken_for_a_frontier() -> None:
    with pytest.raises(FileError):
        from_json(Frontier, to_json(compare_modes(small(), 250 * MIB)))
    assert isinstance(compare_modes(small(), 250 * MIB), Comparison)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "profile.json"):
        with pytest.raises(FileError, match=f"Cannot write .*{path.name}"):
            small().save(path)


class TestStageEstimate:
    def test_its_parts_are_its_peak(self) -> None:
        for stage in choose_plan(small(), 250 * MIB).estimate.stages:
            parts = stage.kept_bytes + stage.slot_bytes + stage.activation_bytes + stage.fixed_bytes
            assert stage.peak_bytes == parts

    def test_its_weights_are_those_of_the_placements_and_what_else_is_excluded(self) -> None:
        extra = component("image_encoder", [30 * MIB])
        profile = replace(small(), components=(*small().components, extra), excluded=("image_encoder",))
        plan = choose_plan(profile, 250 * MIB)
        for index, stage in enumerate(plan.estimate.stages):
            placed = sum(placement.kept_bytes(index) for placement in plan.placements)
            assert stage.kept_bytes == placed + 30 * MIB
            assert stage.slot_bytes == sum(placement.slot_bytes(index) for placement in plan.placements)


class TestComparison:
    def test_it_knows_whose_it_is(self) -> None:
        comparison = compare_modes(small(), 250 * MIB)
        assert comparison.pipeline_class == small().pipeline_class
        assert (comparison.device, comparison.workload) == (small().device, small().workload)
        assert comparison.plan == choose_plan(small(), 250 * MIB)
        assert comparison.modes == (comparison.plan_mode, *comparison.stock)
