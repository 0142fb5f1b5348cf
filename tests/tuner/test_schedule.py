import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.profiles import MIB, activity, component, device, profile, stage
from vramtune.tuner.problem import Problem, pose
from vramtune.tuner.schedule import Residency, moved_bytes, stage_seconds, stage_visits

SECONDS_PER_MIB = MIB / 1e9


def pose_one(sizes, seconds, *, steps=1, root_bytes=0, pipeline_seconds=0.0, layers=None, **on) -> Problem:
    model = component("m", sizes, root_bytes=root_bytes)
    call = activity(model, seconds, layers=layers)
    return pose(profile(device(**on), [model], [stage("m", steps, call, pipeline_seconds=pipeline_seconds)]))


def run(problem: Problem, residency: Residency) -> float:
    return stage_seconds(problem, problem.stages[0], {0: residency})


class TestByHand:
    def test_what_is_there_costs_only_compute(self) -> None:
        problem = pose_one([MIB] * 3, [0.1, 0.2, 0.3], steps=7, pipeline_seconds=0.05)
        assert run(problem, Residency(4, 4, 3)) == pytest.approx(7 * 0.65)

    def test_loading_hides_behind_compute_but_for_the_first_group(self) -> None:
        problem = pose_one([10 * MIB] * 3, [0.1] * 3)
        assert run(problem, Residency(4, 0, 3)) == pytest.approx(10 * SECONDS_PER_MIB + 0.3)

    def test_one_slot_copies_and_computes_in_turn(self) -> None:
        problem = pose_one([10 * MIB] * 4, [0.1] * 4, steps=2)
        assert run(problem, Residency(1, 1, 1)) == pytest.approx(8 * (10 * SECONDS_PER_MIB + 0.1))

    def test_two_slots_overlap_copy_and_compute(self) -> None:
        copy = 100 * SECONDS_PER_MIB
        problem = pose_one([100 * MIB] * 4, [0.2] * 4, steps=3)
        assert run(problem, Residency(1, 1, 2)) == pytest.approx(copy + 12 * 0.2)

    def test_a_copy_bound_loop_takes_its_copies(self) -> None:
        copy = 100 * SECONDS_PER_MIB
        problem = pose_one([100 * MIB] * 4, [0.01] * 4, steps=50)
        assert run(problem, Residency(1, 1, 3)) == pytest.approx(50 * 4 * copy, rel=0.01)

    def test_a_copy_pays_latency_and_the_rate_left_beside_kernels(self) -> None:
        problem = pose_one([10 * MIB], [0.0], overlap_fraction=0.5, copy_latency_seconds=0.001)
        assert run(problem, Residency(2, 1, 3)) == pytest.approx(0.001 + 20 * SECONDS_PER_MIB)

    def test_moved_bytes_count_what_comes_in_once_and_what_comes_in_each_step(self) -> None:
        problem = pose_one([MIB, 2 * MIB, 4 * MIB], [0.1] * 3, steps=5, root_bytes=8 * MIB)
        unit = problem.units[0]
        moved = moved_bytes(problem, problem.stages[0], {0: Residency(2, 1, 3)})
        assert moved == unit.sizes[1] + 5 * (unit.sizes[2] + unit.sizes[3])


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Problem, Residency]:
    sizes = draw(st.lists(st.integers(1, 30).map(lambda n: n * MIB), min_size=1, max_size=12))
    seconds = [draw(st.floats(0, 0.05)) for _ in sizes]
    problem = pose_one(sizes, seconds, steps=draw(st.integers(1, 5)), pipeline_seconds=draw(st.floats(0, 0.02)))
    kept = draw(st.integers(1, len(sizes) + 1))
    return problem, Residency(kept, draw(st.integers(0, kept)), draw(st.integers(1, 5)))


class TestRecurrence:
    @settings(max_examples=200, deadline=None)
    @given(schedules())
    def test_engines_do_one_thing_at_a_time_and_nothing_starts_too_early(self, made) -> None:
        problem, residency = made
        iterations = stage_visits(problem, problem.stages[0], {0: residency})
        copies_end = computed = 0.0
        for visit in (visit for iteration in iterations for visit in iteration):
            assert visit.start >= computed
            computed = visit.end
            if visit.copy_start is not None:
                assert visit.copy_start >= copies_end
                assert visit.start >= visit.copy_end
                copies_end = visit.copy_end

    @settings(max_examples=200, deadline=None)
    @given(schedules())
    def test_the_slots_never_hold_more_than_they_can(self, made) -> None:
        """Bytes copied in whose visit is not over: the ring must have had a place for each of them."""
        problem, residency = made
        unit = problem.units[0]
        iterations = stage_visits(problem, problem.stages[0], {0: residency})
        streamed = [v for iteration in iterations for v in iteration if v.group >= residency.kept]
        for moment in [visit.copy_start for visit in streamed]:
            held = sum(unit.sizes[v.group] for v in streamed if v.copy_start <= moment and v.end > moment)
            assert held <= unit.ring_bytes(residency.kept, residency.num_slots)

    @settings(max_examples=100, deadline=None)
    @given(schedules())
    def test_drawing_and_timing_agree(self, made) -> None:
        problem, residency = made
        one = problem.stages[0]
        iterations = stage_visits(problem, one, {0: residency})
        assert stage_seconds(problem, one, {0: residency}) == pytest.approx(
            iterations[-1][-1].end + one.pipeline_seconds
        )

    @settings(max_examples=100, deadline=None)
    @given(schedules())
    def test_more_slots_or_more_kept_never_move_more(self, made) -> None:
        problem, residency = made
        one = problem.stages[0]
        moved = moved_bytes(problem, one, {0: residency})
        if residency.kept < len(problem.units[0].groups):
            more = residency._replace(kept=residency.kept + 1)
            assert moved_bytes(problem, one, {0: more}) <= moved


def test_long_loops_repeat_their_period() -> None:
    """Beyond the iterations simulated one by one: within 0.1% of all of them."""
    sizes = [(7 + 5 * (i % 3)) * MIB for i in range(40)]
    problem = pose_one(sizes, [0.012 + 0.004 * (i % 5) for i in range(40)], steps=50)
    residency = Residency(12, 12, 3)
    drawn = stage_visits(problem, problem.stages[0], {0: residency})
    assert run(problem, residency) == pytest.approx(drawn[-1][-1].end, rel=1e-3)
