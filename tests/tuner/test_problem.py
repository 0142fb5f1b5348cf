from dataclasses import replace

import pytest

from tests.profiles import MIB, activity, component, device, profile, stage, weights
from vramtune.tuner.problem import DEFAULT_SLOTS, group_visits, pose


def pose_one(model, *stages):
    return pose(profile(device(), [model], stages))


class TestUnits:
    def test_methods_that_share_no_weights_are_planned_apart(self) -> None:
        vae = component("vae", [4 * MIB] * 4)
        problem = pose_one(
            vae,
            stage("vae.encode", 1, activity(vae, [0.1, 0.1], method="encode", layers=[0, 1])),
            stage("vae.decode", 1, activity(vae, [0.1, 0.1], method="decode", layers=[2, 3])),
        )
        assert [unit.methods for unit in problem.units] == [("encode",), ("decode",)]
        assert [unit.total_bytes for unit in problem.units] == [8 * MIB, 8 * MIB]

    def test_methods_that_share_weights_are_planned_together(self) -> None:
        vae = component("vae", [4 * MIB] * 3)
        problem = pose_one(
            vae,
            stage("vae.encode", 1, activity(vae, [0.1, 0.1], method="encode", layers=[0, 1])),
            stage("vae.decode", 1, activity(vae, [0.1, 0.1], method="decode", layers=[1, 2])),
        )
        assert [unit.methods for unit in problem.units] == [()]
        assert problem.units[0].total_bytes == 12 * MIB


class TestExclusion:
    def test_all_groups_are_the_least_active_or_idle(self) -> None:
        vae, model = component("vae", [4 * MIB] * 4, root_bytes=MIB), component("transformer", [4 * MIB] * 4)
        stages = [stage("transformer", 2, activity(model, [0.1] * 4)), stage("vae", 1, activity(vae, [0.1] * 4))]
        excluded, free = pose(profile(device(), [vae, model], stages, excluded=("vae",))).units
        assert (excluded.component, excluded.least_kept, excluded.least_idle) == ("vae", 5, 5)
        assert (free.component, free.least_kept, free.least_idle) == ("transformer", 1, 0)

    def test_what_the_call_does_not_use_is_on_the_device_in_every_stage(self) -> None:
        vae = replace(component("vae", [4 * MIB] * 2), parameters=weights(11 * MIB))
        extra = component("extra", [2 * MIB])
        decode = stage("vae.decode", 1, activity(vae, [0.1] * 2, activation_bytes=5 * MIB))
        problem = pose(profile(device(), [vae, extra], [decode, decode], excluded=("vae", "extra")))
        assert problem.excluded == {"vae": 3 * MIB, "extra": 2 * MIB}
        assert [s.overhead_bytes for s in problem.stages] == [10 * MIB] * 2

    def test_methods_that_share_only_the_root_leave_nothing_unused(self) -> None:
        vae = component("vae", [4 * MIB] * 2, root_bytes=MIB)
        problem = pose(
            profile(
                device(),
                [vae],
                [
                    stage("vae.encode", 1, activity(vae, [0.1], method="encode", layers=[0])),
                    stage("vae.decode", 1, activity(vae, [0.1], method="decode", layers=[1])),
                ],
                excluded=("vae",),
            )
        )
        assert [unit.is_excluded for unit in problem.units] == [True, True]
        assert problem.excluded == {"vae": 0}


class TestKeepOrder:
    def test_the_root_is_first_and_every_group_is_there_once(self) -> None:
        model = component("m", [3 * MIB, MIB, 2 * MIB], root_bytes=MIB)
        unit = pose_one(model, stage("m", 2, activity(model, [0.1, 0.2, 0.3]))).units[0]
        assert unit.groups[0].name == "root"
        assert sorted(g.name for g in unit.groups) == ["blocks.0", "blocks.1", "blocks.2", "root"]

    def test_a_leaf_that_would_swell_the_slots_is_kept_before_the_others(self) -> None:
        model = component("m", [10 * MIB] * 20 + [500 * MIB] + [10 * MIB] * 20)
        unit = pose_one(model, stage("m", 2, activity(model, [0.1] * 41))).units[0]
        assert unit.groups[1].name == "blocks.20"
        assert unit.least_kept == 2
        assert unit.ring_bytes(unit.least_kept, DEFAULT_SLOTS) == 30 * MIB

    def test_weights_without_compute_are_kept_before_those_that_hide_behind_it(self) -> None:
        """Copies of a group that computes nothing have nothing to hide behind."""
        model = component("m", [10 * MIB] * 40)
        seconds = [0.0 if i % 4 == 0 else 0.1 for i in range(40)]
        unit = pose_one(model, stage("m", 2, activity(model, seconds))).units[0]
        kept = {int(group.name.split(".")[1]) % 4 for group in unit.groups[1:11]}
        assert kept <= {0, 1, 3}
        assert 0 in kept


class TestVisits:
    def test_root_layers_count_with_the_group_before(self) -> None:
        model = component("m", [MIB, MIB, MIB])
        layers = (model.layers[0], replace(model.layers[1], group=0), model.layers[2])
        model = replace(model, layers=layers)
        assert group_visits(model, activity(model, [1.0, 2.0, 4.0])) == [(0, 0.0), (1, 3.0), (3, 4.0)]

    def test_a_group_run_twice_in_a_row_is_visited_once(self) -> None:
        model = component("m", [MIB, MIB])
        call = activity(model, [1.0, 1.0, 2.0], layers=[0, 0, 1])
        assert group_visits(model, call) == [(0, 0.0), (1, 2.0), (2, 2.0)]

    def test_mean_visits_count_every_pass_over_the_weights(self) -> None:
        model = component("m", [2 * MIB, 2 * MIB], root_bytes=4 * MIB)
        frames = activity(model, [0.1] * 6, layers=[0, 1] * 3)
        one = pose_one(model, stage("m", 1, frames)).stages[0]
        assert one.num_visits == (pytest.approx((4 + 3 * 4) / 8),)

    def test_overhead_is_all_that_is_not_weights(self) -> None:
        model = component("m", [MIB])
        on = device(context_bytes=5 * MIB, workspace_bytes=3 * MIB)
        problem = pose(profile(on, [model], [stage("m", 1, activity(model, [0.1], activation_bytes=2 * MIB))]))
        assert problem.stages[0].overhead_bytes == 10 * MIB
