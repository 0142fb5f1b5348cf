"""Nouns as pandas DataFrames: tidy columns, units in their names, a missing value where something is unknown."""

from collections.abc import Iterable
from functools import singledispatch
from typing import TYPE_CHECKING, get_type_hints

from vramtune.errors import UsageError
from vramtune.reports.tables import (
    ComponentRow,
    ModeRow,
    PlacementRow,
    component_rows,
    mode_rows,
    placement_rows,
)
from vramtune.schema import Comparison, Frontier, FrontierPoint, MeasuredStage, Measurement, Plan, Profile

if TYPE_CHECKING:
    import pandas

DTYPES: dict[object, str] = {
    int: "int64",
    int | None: "Int64",
    float: "float64",
    float | None: "float64",
    bool: "bool",
    bool | None: "boolean",
}
"""By annotation, so that a column's type does not depend on its values; all others hold words."""


@singledispatch
def to_frame(noun: object) -> "pandas.DataFrame":
    """One row per component of a profile, placement and stage of a plan, mode of a comparison, point of a
    frontier, stage of a measurement."""
    known = [kind.__name__ for kind in to_frame.registry if kind is not object]
    raise UsageError(f"to_frame takes a {', '.join(known[:-1])} or {known[-1]}; got {type(noun).__name__}.")


@to_frame.register(Profile)
def _profile_frame(profile: Profile) -> "pandas.DataFrame":
    return _frame(ComponentRow, component_rows(profile))


@to_frame.register(Plan)
def _plan_frame(plan: Plan) -> "pandas.DataFrame":
    return _frame(PlacementRow, placement_rows(plan))


@to_frame.register(Comparison)
def _comparison_frame(comparison: Comparison) -> "pandas.DataFrame":
    return _frame(ModeRow, mode_rows(comparison)).drop(columns="plan_ratio")


@to_frame.register(Frontier)
def _frontier_frame(frontier: Frontier) -> "pandas.DataFrame":
    return _frame(FrontierPoint, frontier.points)


@to_frame.register(Measurement)
def _measurement_frame(measurement: Measurement) -> "pandas.DataFrame":
    return _frame(MeasuredStage, measurement.stages).rename(columns={"name": "stage"})


def _frame(kind: type, rows: Iterable[object]) -> "pandas.DataFrame":
    """One row per dataclass, one column per field."""
    import pandas

    rows = tuple(rows)
    return pandas.DataFrame(
        {
            name: pandas.Series([getattr(row, name) for row in rows], dtype=DTYPES.get(hint, "str"))
            for name, hint in get_type_hints(kind).items()
        }
    )
