"""Nouns as pandas DataFrames: tidy columns, units in their names, a missing value where something is unknown."""

from collections.abc import Iterable
from functools import singledispatch
from typing import TYPE_CHECKING, get_type_hints

from vramtune.errors import UsageError
from vramtune.reports.rows import (
    BesideRow,
    ComponentRow,
    ModeRow,
    PlacementRow,
    PointRow,
    beside_rows,
    component_rows,
    mode_rows,
    placement_rows,
    point_rows,
)
from vramtune.schema import (
    Comparison,
    Frontier,
    MeasuredStage,
    Measurement,
    Plan,
    Profile,
    Span,
    Timeline,
)

if TYPE_CHECKING:
    from pandas import DataFrame

DTYPES: dict[object, str] = {
    int: "int64",
    int | None: "Int64",
    float: "float64",
    float | None: "float64",
    bool: "bool",
    bool | None: "boolean",
}
"""The column's type by annotation, so that no value decides it; all others hold words."""


@singledispatch
def to_frame(noun: object) -> "DataFrame":
    """One row per component of a profile, placement and stage of a plan, mode of a comparison, point of a frontier,
    stage of a measurement, span of a timeline."""
    if noun is None:
        raise UsageError("to_frame got None. What was measured is None until a call has finished.")
    known = ", ".join(kind.__name__ for kind in to_frame.registry if kind is not object)
    raise UsageError(f"Expected one of {known}; got {type(noun).__name__}.")


@to_frame.register(Profile)
def _profile_frame(profile: Profile) -> "DataFrame":
    return _frame(ComponentRow, component_rows(profile))


@to_frame.register(Plan)
def _plan_frame(plan: Plan) -> "DataFrame":
    return _frame(PlacementRow, placement_rows(plan))


@to_frame.register(Comparison)
def _comparison_frame(comparison: Comparison) -> "DataFrame":
    return _frame(ModeRow, mode_rows(comparison))


@to_frame.register(Frontier)
def _frontier_frame(frontier: Frontier) -> "DataFrame":
    return _frame(PointRow, point_rows(frontier))


@to_frame.register(Timeline)
def _timeline_frame(timeline: Timeline) -> "DataFrame":
    names = [timeline.plan.stages[span.stage].name for span in timeline.spans]
    return _frame(Span, timeline.spans).assign(stage=names).astype({"stage": "str"})


@to_frame.register(Measurement)
def _measurement_frame(measurement: Measurement) -> "DataFrame":
    return _frame(MeasuredStage, measurement.stages).rename(columns={"name": "stage"})


def tuned_frame(plan: Plan, measurement: Measurement | None) -> "DataFrame":
    """One row per stage: what was predicted, and beside it what was measured, once a call has finished."""
    return _frame(BesideRow, beside_rows(plan, measurement))


def _frame(kind: type, rows: Iterable[object]) -> "DataFrame":
    """One row per dataclass of that kind, one column per field."""
    import pandas

    rows = tuple(rows)
    return pandas.DataFrame(
        {
            name: pandas.Series([getattr(row, name) for row in rows], dtype=DTYPES.get(hint, "str"))
            for name, hint in get_type_hints(kind).items()
        }
    )
