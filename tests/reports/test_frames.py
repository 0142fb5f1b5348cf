import dataclasses
import subprocess
import sys

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import profiles
from tests.reports import examples, seen
from vramtune.errors import UsageError
from vramtune.reports.frames import to_frame
from vramtune.schema import Comparison, Frontier, FrontierPoint, MeasuredStage, ModeEstimate

PLAN = examples.sdxl_plan()
NOUNS = {
    "profile": examples.sdxl(),
    "plan": PLAN,
    "comparison": examples.comparison(PLAN),
    "frontier": seen.frontier(PLAN),
    "measurement": seen.measurement(PLAN),
    "tuned": seen.Tuned(examples.sdxl(), PLAN, seen.measurement(PLAN)),
}
COLUMNS = {
    "profile": "component class_name dtype weight_bytes used_bytes is_excluded activation_bytes num_calls compute_seconds "
    "copy_seconds",
    "plan": "placement component stage active role num_kept num_groups kept_bytes slot_bytes",
    "comparison": "mode fits peak_bytes seconds compute_seconds copied_in_bytes copied_out_bytes",
    "frontier": "budget_bytes peak_bytes seconds bound_seconds",
    "measurement": "stage seconds exposed_copy_seconds moved_bytes peak_bytes",
    "tuned": "stage num_iterations predicted_peak_bytes measured_peak_bytes predicted_seconds measured_seconds "
    "measured_exposed_copy_seconds predicted_moved_bytes measured_moved_bytes",
}

sizes, spans = st.integers(0, 2**40), st.floats(0, 1e6)


@pytest.mark.parametrize("name", NOUNS)
def test_columns_are_these(name):
    assert list(to_frame(NOUNS[name]).columns) == COLUMNS[name].split()


@pytest.mark.parametrize("name", NOUNS)
def test_sizes_are_whole_numbers_and_times_are_not(name):
    for column, dtype in to_frame(NOUNS[name]).dtypes.items():
        if column.endswith("bytes") or column.startswith("num_"):
            assert str(dtype).lower() == "int64", column
        if column.endswith("seconds"):
            assert str(dtype) == "float64", column


def test_a_column_keeps_its_type_without_the_unknown_and_without_rows():
    profile = examples.sdxl()
    known = dataclasses.replace(
        profile, components=tuple(c for c in profile.components if c.name != "safety_checker")
    )
    none = dataclasses.replace(profile, components=(), stages=())
    frames = [to_frame(noun) for noun in (profile, known, none)]
    assert frames[0].activation_bytes.isna().sum() == 1
    assert frames[1].activation_bytes.notna().all()
    assert len(frames[2]) == 0
    assert all((frame.dtypes == frames[0].dtypes).all() for frame in frames)


@given(profiles())
def test_a_profile_has_a_row_per_component_and_the_rows_add_up(profile):
    frame = to_frame(profile)
    assert set(frame.component) == {component.name for component in profile.components}
    assert frame.component.is_unique
    assert frame.weight_bytes.sum() == sum(c.weights.num_bytes for c in profile.components)
    assert frame.used_bytes.sum() == sum(c.used_bytes for c in profile.components)
    stages = profile.stages
    glue = sum(stage.num_iterations * stage.glue_seconds for stage in stages)
    assert frame.compute_seconds.sum() + glue == pytest.approx(
        sum(stage.num_iterations * stage.seconds for stage in stages)
    )


@pytest.mark.parametrize("plan", [examples.sdxl_plan(), examples.flux_plan()])
def test_a_plan_has_a_row_per_placement_and_stage(plan):
    frame = to_frame(plan)
    assert len(frame) == len(plan.placements) * len(plan.stages)
    kept = frame.groupby("stage").kept_bytes.sum()
    for index, stage in enumerate(plan.stages):
        assert kept[stage.name] == sum(placement.kept_bytes(index) for placement in plan.placements)


@given(
    st.lists(
        st.builds(
            ModeEstimate,
            mode=st.text(max_size=8),
            fits=st.none() | st.booleans(),
            peak_bytes=sizes,
            seconds=spans,
            compute_seconds=spans,
            copied_in_bytes=sizes,
            copied_out_bytes=sizes,
        ),
        max_size=5,
    )
)
def test_a_comparison_has_a_row_per_mode_and_an_unknown_fit_stays_unknown(modes):
    frame = to_frame(Comparison(asked_bytes=1, budget_bytes=1, bound_seconds=None, modes=tuple(modes)))
    assert frame.copied_in_bytes.sum() == sum(mode.copied_in_bytes for mode in modes)
    assert sorted(frame["mode"]) == sorted(mode.mode for mode in modes)
    assert frame.fits.isna().sum() == sum(mode.fits is None for mode in modes)
    assert frame.fits.sum() == sum(mode.fits is True for mode in modes)


@given(
    st.lists(
        st.builds(FrontierPoint, budget_bytes=sizes, peak_bytes=sizes, seconds=spans, bound_seconds=spans)
    )
)
def test_a_frontier_has_its_points(points):
    frame = to_frame(Frontier(points=tuple(points), modes=()))
    assert frame.to_dict("records") == [dataclasses.asdict(point) for point in points]


@given(
    st.lists(
        st.builds(
            MeasuredStage,
            name=st.text(max_size=5),
            seconds=spans,
            exposed_copy_seconds=spans,
            moved_bytes=sizes,
            peak_bytes=sizes,
        )
    )
)
def test_a_measurement_has_its_stages_in_order(stages):
    measurement = seen.measurement(PLAN, stages=tuple(stages))
    frame = to_frame(measurement)
    assert list(frame.stage) == [stage.name for stage in stages]
    assert list(frame.peak_bytes) == [stage.peak_bytes for stage in stages]
    assert frame.seconds.sum() == pytest.approx(sum(stage.seconds for stage in stages))


@pytest.mark.parametrize("name", ["comparison", "frontier"])
def test_the_method_is_the_function(name):
    pandas.testing.assert_frame_equal(NOUNS[name].to_frame(), to_frame(NOUNS[name]))


def test_before_the_first_call_the_measured_columns_are_empty():
    frame = to_frame(seen.Tuned(examples.sdxl(), PLAN, None))
    measured = [column for column in frame.columns if column.startswith("measured")]
    assert frame[measured].isna().all(axis=None)
    assert list(frame.predicted_seconds) == [stage.seconds for stage in PLAN.estimate.stages]


def test_anything_else_is_refused_with_what_would_do():
    with pytest.raises(
        UsageError,
        match=r"a Comparison, Frontier, Profile, Plan, Measurement or a tuned pipeline; got Timeline",
    ):
        to_frame(seen.timeline(examples.sdxl(), PLAN))


def test_pandas_waits_until_it_is_needed():
    code = "import sys, vramtune.reports.frames; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pandas" not in done.stdout.split()


def test_what_is_not_measured_yet_says_so() -> None:
    with pytest.raises(UsageError, match="until a call has finished"):
        to_frame(None)
