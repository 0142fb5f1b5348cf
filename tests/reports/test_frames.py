import dataclasses
import subprocess
import sys

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import profiles
from tests.reports import examples, plan_results
from vramtune.errors import UsageError
from vramtune.reports.frames import to_frame, tuned_frame
from vramtune.schema import Extreme, MeasuredStage, ModeEstimate

PLAN = examples.sdxl_plan()
MEASURED = plan_results.measurement(PLAN)
NOUNS = {
    "profile": examples.sdxl(),
    "plan": PLAN,
    "comparison": examples.comparison(PLAN),
    "frontier": plan_results.frontier(PLAN),
    "measurement": MEASURED,
    "timeline": plan_results.timeline(examples.sdxl(), PLAN),
}
FRAMES = {**{name: to_frame(noun) for name, noun in NOUNS.items()}, "tuned": tuned_frame(PLAN, MEASURED)}
COLUMNS = {
    "profile": "component class_name dtype weight_bytes used_bytes is_excluded activation_bytes num_calls compute_seconds "
    "copy_seconds",
    "plan": "placement component stage active role num_kept num_groups weight_bytes kept_bytes slot_bytes "
    "locked_bytes staged_bytes",
    "comparison": "mode fits lacks_ram is_narrow peak_bytes low_peak_bytes high_peak_bytes seconds low_seconds high_seconds plan_ratio "
    "compute_seconds exposed_copy_seconds moved_bytes moved_back_bytes host_bytes",
    "frontier": "budget_bytes peak_bytes seconds bound_seconds gap_fraction limit permissions stock_mode stock_seconds",
    "measurement": "stage seconds exposed_copy_seconds moved_bytes peak_bytes",
    "timeline": "engine component group stage iteration is_kept start_seconds end_seconds",
    "tuned": "stage num_iterations predicted_kept_bytes predicted_slot_bytes predicted_activation_bytes predicted_cached_bytes "
    "predicted_fixed_bytes predicted_peak_bytes measured_peak_bytes predicted_seconds measured_seconds "
    "predicted_exposed_copy_seconds measured_exposed_copy_seconds predicted_moved_bytes measured_moved_bytes",
}

sizes, spans = st.integers(0, 2**40), st.floats(0, 1e6)


@pytest.mark.parametrize("name", FRAMES)
def test_frame_has_these_columns(name):
    assert list(FRAMES[name].columns) == COLUMNS[name].split()


@pytest.mark.parametrize("name", FRAMES)
def test_sizes_are_whole_numbers_and_times_are_not(name):
    for column, dtype in FRAMES[name].dtypes.items():
        if column.endswith("bytes") or column.startswith("num_"):
            assert str(dtype).lower() == "int64", column
        if column.endswith("seconds"):
            assert str(dtype) == "float64", column


def test_column_keeps_its_type_without_unknown_values_and_without_rows():
    profile = examples.sdxl()
    known = dataclasses.replace(profile, components=tuple(c for c in profile.components if c.name != "safety_checker"))
    none = dataclasses.replace(profile, components=(), stages=())
    frames = [to_frame(noun) for noun in (profile, known, none)]
    assert frames[0].activation_bytes.isna().sum() == 1
    assert frames[1].activation_bytes.notna().all()
    assert len(frames[2]) == 0
    assert all((frame.dtypes == frames[0].dtypes).all() for frame in frames)


@given(profiles())
def test_profile_frame_has_a_row_per_component_and_the_rows_add_up(profile):
    frame = to_frame(profile)
    assert set(frame.component) == {component.name for component in profile.components}
    assert frame.component.is_unique
    assert frame.weight_bytes.sum() == sum(c.weights.num_bytes for c in profile.components)
    assert frame.used_bytes.sum() == sum(c.used_bytes for c in profile.components)
    stages = profile.stages
    own = sum(stage.num_iterations * stage.pipeline_seconds for stage in stages)
    assert frame.compute_seconds.sum() + own == pytest.approx(
        sum(stage.num_iterations * stage.seconds for stage in stages)
    )


@pytest.mark.parametrize("plan", [examples.sdxl_plan(), examples.flux_plan()])
def test_plan_frame_has_a_row_per_placement_and_stage(plan):
    frame = to_frame(plan)
    assert len(frame) == len(plan.placements) * len(plan.stages)
    kept = frame.groupby("stage").kept_bytes.sum()
    for index, stage in enumerate(plan.stages):
        assert kept[stage.name] == sum(placement.kept_bytes(index) for placement in plan.placements)


ends = st.builds(Extreme, seconds=spans, peak_bytes=sizes)


@given(
    st.lists(
        st.builds(
            ModeEstimate,
            mode=st.text(max_size=8),
            fits=st.none() | st.booleans(),
            peak_bytes=sizes,
            seconds=spans,
            compute_seconds=spans,
            moved_bytes=sizes,
            moved_back_bytes=sizes,
            host_bytes=sizes,
            low=ends,
            high=ends,
        ),
        max_size=5,
    )
)
def test_comparison_frame_has_a_row_per_mode_and_an_unknown_fit_stays_unknown(modes):
    frame = to_frame(dataclasses.replace(NOUNS["comparison"], plan=None, stock=tuple(modes)))
    assert frame.moved_bytes.sum() == sum(mode.moved_bytes for mode in modes)
    assert sorted(frame["mode"]) == sorted(mode.mode for mode in modes)
    assert frame.fits.isna().sum() == sum(mode.fits is None for mode in modes)
    assert frame.fits.sum() == sum(mode.fits is True for mode in modes)


def test_frontier_frame_has_a_row_per_point():
    frame, points = FRAMES["frontier"], NOUNS["frontier"].points
    assert list(frame.budget_bytes) == [point.budget_bytes for point in points]
    assert list(frame.peak_bytes) == [point.estimate.peak_bytes for point in points]
    assert list(frame.bound_seconds) == [point.estimate.bound_seconds for point in points]


def test_timeline_frame_has_a_row_per_span_which_names_its_stage():
    frame, spans = FRAMES["timeline"], NOUNS["timeline"].spans
    assert len(frame) == len(spans)
    assert list(frame.stage.unique()) == [stage.name for stage in PLAN.stages]
    assert frame[frame.stage == "unet"].iteration.max() == 49
    assert not frame[frame.engine == "copy"].is_kept.any()


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
def test_measurement_frame_has_the_stages_in_order(stages):
    measurement = plan_results.measurement(PLAN, stages=tuple(stages))
    frame = to_frame(measurement)
    assert list(frame.stage) == [stage.name for stage in stages]
    assert list(frame.peak_bytes) == [stage.peak_bytes for stage in stages]
    assert frame.seconds.sum() == pytest.approx(sum(stage.seconds for stage in stages))


@pytest.mark.parametrize("name", NOUNS)
def test_method_to_frame_gives_what_the_function_does(name):
    pandas.testing.assert_frame_equal(NOUNS[name].to_frame(), FRAMES[name])


def test_tuned_frame_before_the_first_call_has_empty_measured_columns():
    frame = tuned_frame(PLAN, None)
    measured = [column for column in frame.columns if column.startswith("measured")]
    assert frame[measured].isna().all(axis=None)
    assert list(frame.predicted_seconds) == [stage.seconds for stage in PLAN.estimate.stages]


def test_frame_of_anything_but_a_noun_is_refused():
    with pytest.raises(UsageError, match=r"one of Profile, .*Measurement; got str"):
        to_frame("a plan")


def test_importing_frames_does_not_import_pandas():
    code = "import sys, vramtune.reports.frames; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pandas" not in done.stdout.split()


def test_frame_of_a_missing_measurement_says_that_a_call_must_finish_first():
    with pytest.raises(UsageError, match="until a call has finished"):
        to_frame(None)
