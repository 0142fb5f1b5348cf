"""Nouns as pandas DataFrames: tidy columns, units in their names, a missing value where something is unknown."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, get_type_hints

from vramtune.errors import UsageError
from vramtune.reports import rows
from vramtune.schema import Comparison, Frontier, MeasuredStage, Measurement, Plan, Profile, Ranking, Span, Timeline

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


ROWS: dict[type, tuple[type, Callable[[Any], Iterable[object]]]] = {
    Profile: (rows.ComponentRow, rows.component_rows),
    Plan: (rows.PlacementRow, rows.placement_rows),
    Comparison: (rows.ModeRow, rows.mode_rows),
    Frontier: (rows.PointRow, rows.point_rows),
    Ranking: (rows.GpuRow, rows.gpu_rows),
    Timeline: (Span, lambda timeline: timeline.spans),
    Measurement: (MeasuredStage, lambda measurement: measurement.stages),
}
"""The rows of each noun, and their type."""

BESIDE_FIGURES = (
    "predicted_num_iterations",
    "predicted_kept_bytes",
    "predicted_slot_bytes",
    "predicted_activation_bytes",
    "predicted_cached_bytes",
    "predicted_fixed_bytes",
    "predicted_peak_bytes",
    "measured_peak_bytes",
    "predicted_seconds",
    "measured_seconds",
    "predicted_exposed_copy_seconds",
    "measured_exposed_copy_seconds",
    "predicted_moved_bytes",
    "measured_moved_bytes",
)
"""The side of a `BesideRow` and the noun's field, for each figure."""


def to_frame(noun: object) -> "DataFrame":
    """One row per component of a profile, placement and stage of a plan, mode of a comparison, point of a frontier,
    GPU of a ranking, span of a timeline, stage of a measurement."""
    if noun is None:
        raise UsageError("to_frame got None. What was measured is None until a call has finished.")
    if type(noun) not in ROWS:
        known = ", ".join(kind.__name__ for kind in ROWS)
        raise UsageError(f"Expected one of {known}; got {type(noun).__name__}.")
    kind, rows_of = ROWS[type(noun)]
    frame = rows_frame(kind, rows_of(noun)).rename(columns={"name": "stage"})
    if isinstance(noun, Timeline):
        names = [noun.plan.stages[span.stage].name for span in noun.spans]
        return frame.assign(stage=names).astype({"stage": "str"})
    return frame


def tuned_frame(plan: Plan, measurement: Measurement | None) -> "DataFrame":
    """One row per stage: what was predicted, and beside it what was measured, once a call has finished."""
    import pandas

    stages = rows.beside_rows(plan, measurement)
    columns = {"stage": pandas.Series([stage.stage for stage in stages], dtype="str")}
    for column in BESIDE_FIGURES:
        side, _, field = column.partition("_")
        figures = [getattr(getattr(stage, side), field, None) for stage in stages]
        columns[column] = pandas.Series(figures, dtype="float64" if field.endswith("seconds") else "Int64")
    return pandas.DataFrame(columns).rename(columns={"predicted_num_iterations": "num_iterations"})


def rows_frame(kind: type, observations: Iterable[object]) -> "DataFrame":
    """One row per dataclass of that kind, one column per field."""
    import pandas

    observations = tuple(observations)
    return pandas.DataFrame(
        {
            name: pandas.Series([getattr(row, name) for row in observations], dtype=dtype)
            for name, dtype in column_dtypes(kind).items()
        }
    )


def column_dtypes(kind: type) -> dict[str, str]:
    """The columns of a dataclass's rows, and their types."""
    return {name: DTYPES.get(hint, "str") for name, hint in get_type_hints(kind).items()}
