"""Rows as pandas DataFrames: a column per field, its type from the annotation, so that no value decides it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, get_type_hints

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
"""By annotation; all others hold words."""


def frame_of(kind: type, rows: Iterable[object]) -> "DataFrame":
    """One row per dataclass of that kind, one column per field."""
    import pandas

    rows = tuple(rows)
    return pandas.DataFrame(
        {
            name: pandas.Series([getattr(row, name) for row in rows], dtype=DTYPES.get(hint, "str"))
            for name, hint in get_type_hints(kind).items()
        }
    )
