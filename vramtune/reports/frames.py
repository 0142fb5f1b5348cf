"""Nouns as pandas DataFrames: tidy columns, units in their names, a missing value where something is unknown."""

from functools import singledispatch
from typing import TYPE_CHECKING

from vramtune.errors import UsageError
from vramtune.reports.rows import (
    BesideRow,
    ComponentRow,
    PlacementRow,
    Tuned,
    beside_rows,
    component_rows,
    placement_rows,
)
from vramtune.schema import Comparison, Frontier, MeasuredStage, Measurement, Plan, Profile, frame_of

if TYPE_CHECKING:
    import pandas


@singledispatch
def to_frame(noun: object) -> "pandas.DataFrame":
    """One row per component of a profile, placement and stage of a plan, mode of a comparison, point of a
    frontier, stage of a measurement or of a tuned pipeline (predicted beside measured)."""
    if isinstance(noun, Tuned):
        return frame_of(BesideRow, beside_rows(noun.plan, noun.measured))
    if noun is None:
        raise UsageError("to_frame got None. What was measured is None until a call has finished.")
    known = ", ".join(kind.__name__ for kind in to_frame.registry if kind is not object)
    raise UsageError(f"to_frame takes a {known} or a tuned pipeline; got {type(noun).__name__}.")


to_frame.register(Comparison, Comparison.to_frame)
to_frame.register(Frontier, Frontier.to_frame)


@to_frame.register(Profile)
def _profile_frame(profile: Profile) -> "pandas.DataFrame":
    return frame_of(ComponentRow, component_rows(profile))


@to_frame.register(Plan)
def _plan_frame(plan: Plan) -> "pandas.DataFrame":
    return frame_of(PlacementRow, placement_rows(plan))


@to_frame.register(Measurement)
def _measurement_frame(measurement: Measurement) -> "pandas.DataFrame":
    return frame_of(MeasuredStage, measurement.stages).rename(columns={"name": "stage"})
