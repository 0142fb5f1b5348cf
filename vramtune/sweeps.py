"""Many answers at once: models x sizes x quantizations x GPUs x budgets, one row each, to a CSV or Parquet file.

What is independent runs through joblib: on this machine's processes, or wherever `joblib.parallel_config` says (a Dask or
Ray cluster). Each model's part is kept beside the file until all is done, so that a sweep that was cut goes on there.
"""

import hashlib
import io
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import msgspec

from vramtune import catalog, predict
from vramtune.catalog.kept import own_code
from vramtune.errors import FileError, TraceError, UsageError
from vramtune.reports.explorer import write_explorer
from vramtune.reports.frames import column_dtypes, rows_frame
from vramtune.reports.rows import plan_role
from vramtune.schema import (
    Device,
    Profile,
    SweepRow,
    Trace,
    checked_path,
    make_folder,
    read_file,
    stages_text,
    write_file,
)
from vramtune.tuner.ranking import fastest_in_each

COLUMNS = ("height", "width", "frames", "steps")
"""Settings of a call that are columns."""
FORMATS = ("csv", "parquet")
PER_TASK = 4
"""GPUs that one task plans for: enough that a task outweighs its way there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPart:
    """What one trace answers: a model's call, as it is quantized, on all GPUs in all budgets."""

    model: str
    settings: Mapping[str, object]
    quantize: Mapping[str, str]

    @property
    def title(self) -> str:
        """What it is of, in words."""
        return " ".join(
            filter(None, (self.model, *(f"{n}={v}" for n, v in self.settings.items()), self.row.quantization))
        )

    @property
    def row(self) -> SweepRow:
        """What all its rows have in common."""
        ways = ",".join(f"{component}={way}" for component, way in self.quantize.items())
        sizes = {name: self.settings.get(name) for name in COLUMNS}
        return msgspec.convert({"model": self.model, "quantization": ways, **sizes}, SweepRow)


def sweep(
    models: Sequence[str],
    *,
    budgets: Sequence[int],
    devices: Sequence[Device],
    settings: Sequence[Mapping[str, object]] = ({},),
    quantizations: Sequence[Mapping[str, str]] = ({},),
    allow: tuple[str, ...] = (),
    path: Path,
    arguments: predict.Arguments,
    jobs: int | None = None,
    show: Callable[[str, int, int], None] = lambda doing, done, total: None,
) -> list[SweepRow]:
    """Write a row for each combination, budgets in bytes, and return them.

    `jobs` are processes; left out, joblib's own choice, which is one unless `joblib.parallel_config` says otherwise. `show`
    gets what is being done, and of how many parts how many are. A model whose call cannot be followed has one row with the
    error. Raises `UsageError` for a file of another format or without its library and for what names no model, `FileError`
    where the file cannot be written.
    """
    _check_format(path)
    for model in models:
        catalog.expect_model(model)
    if unknown := sorted({name for each in settings for name in each} - {*COLUMNS}):
        raise UsageError(f"The calls of a sweep differ in {', '.join(COLUMNS)}; got {', '.join(unknown)}.")
    parts = [SweepPart(model=m, settings=s, quantize=q) for m in models for s in settings for q in quantizations]
    folder = path.with_name(f"{path.name}.parts")
    rows: list[SweepRow] = []
    for number, part in enumerate(parts):
        show(part.title, number, len(parts))
        rows += _rows_of(part, budgets, devices, allow, folder=folder, arguments=arguments, jobs=jobs)
    _write(path, rows)
    shutil.rmtree(folder, ignore_errors=True)
    return rows


def read_sweep(path: str | Path) -> list[SweepRow]:
    """The rows of a sweep's file; a `FileError` says what else the file is."""
    import pandas

    file = checked_path(path)
    _check_format(file)
    content = io.BytesIO(read_file(file))
    try:
        dtypes = column_dtypes(SweepRow)
        frame = pandas.read_parquet(content) if _is_parquet(file) else pandas.read_csv(content, dtype=dtypes)
        facts = [{name: each for name, each in row.items() if pandas.notna(each)} for row in frame.to_dict("records")]
        rows = msgspec.convert(facts, list[SweepRow], strict=False)
        if not rows:
            raise ValueError("it has no rows")
        for row in rows:
            row.check()
    except (ValueError, OSError) as error:  # what pandas, pyarrow and msgspec raise is one of these
        raise FileError(f"Expected a sweep in {str(file)!r}, as `vramtune sweep` writes it: {error}.") from error
    return rows


def explore(path: str | Path, folder: str | Path) -> Path:
    """Write the page of a sweep's file into a folder, the file beside it; returns the page's path."""
    file, place = checked_path(path), checked_path(folder)
    page = write_explorer(place, read_sweep(file), data=file.name)
    if (place / file.name).resolve() != file.resolve():
        write_file(place / file.name, read_file(file))
    return page


def _rows_of(
    part: SweepPart,
    budgets: Sequence[int],
    devices: Sequence[Device],
    allow: tuple[str, ...],
    *,
    folder: Path,
    arguments: predict.Arguments,
    jobs: int | None,
) -> list[SweepRow]:
    """Of one part: kept from before, or planned now and kept."""
    facts = msgspec.json.encode([part, list(budgets), list(devices), allow, own_code()])
    kept = folder / f"{hashlib.sha256(facts).hexdigest()[:32]}.json"
    if kept.exists():
        return msgspec.json.decode(read_file(kept), type=list[SweepRow])
    call = predict.ModelCall(model=part.model, settings=part.settings, quantize=part.quantize, allow=allow)
    try:
        trace = predict.trace_model(call, arguments=arguments)
    except (UsageError, TraceError) as error:
        return [replace(part.row, error=str(error))]
    from joblib import Parallel, delayed

    content = trace.to_bytes()
    tasks = (
        delayed(planned_rows)(content, devices[start : start + PER_TASK], tuple(budgets), allow, part.row)
        for start in range(0, len(devices), PER_TASK)
    )
    rows = [row for rows in Parallel(n_jobs=jobs)(tasks) for row in rows]
    make_folder(folder)
    write_file(kept, msgspec.json.encode(rows))
    return rows


def planned_rows(
    content: bytes, devices: Sequence[Device], budgets: Sequence[int], allow: tuple[str, ...], row: SweepRow
) -> list[SweepRow]:
    """What is done elsewhere: rows of a trace, as `Trace.to_bytes` wrote it, on some GPUs in these budgets."""
    trace = _trace(content)
    return [
        replace(found, pipeline_class=trace.pipeline_class)
        for device in devices
        for found in _planned(predict.price_model(trace, device, allow), budgets, allow, row)
    ]


@lru_cache(maxsize=2)
def _trace(content: bytes) -> Trace:
    return Trace.from_bytes(content)


def _planned(profile: Profile, budgets: Sequence[int], allow: tuple[str, ...], row: SweepRow) -> Iterator[SweepRow]:
    device = profile.device
    least_bytes, points = fastest_in_each(profile, budgets, allow)
    for asked_bytes, point in zip(budgets, points, strict=True):
        asked = replace(
            row,
            gpu=device.name,
            gpu_bytes=device.total_bytes,
            asked_bytes=asked_bytes,
            limit_bytes=min(asked_bytes, device.usable_bytes),
            fits=point is not None,
            least_bytes=least_bytes,
        )
        if point is None:
            yield asked
            continue
        estimate = point.estimate
        yield replace(
            asked,
            is_narrow=estimate.is_narrow,
            role=plan_role(estimate),
            permissions=",".join(point.permissions),
            peak_bytes=estimate.peak_bytes,
            seconds=estimate.seconds,
            low_seconds=estimate.low.seconds,
            high_seconds=estimate.high.seconds,
            bound_seconds=estimate.bound_seconds,
            moved_bytes=estimate.moved_bytes,
            stages=stages_text(estimate.stages),
        )


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _check_format(path: Path) -> None:
    suffix = checked_path(path).suffix.lstrip(".").lower()
    if suffix not in FORMATS:
        raise UsageError(f"A sweep is written to a file that ends in .{' or .'.join(FORMATS)}; got {str(path)!r}.")
    if suffix == "parquet" and find_spec("pyarrow") is None:
        raise UsageError(
            'Parquet needs pyarrow, which is not installed. Install it: `pip install "vramtune[parquet]"`, or name a '
            "file that ends in .csv."
        )


def _write(path: Path, rows: Sequence[SweepRow]) -> None:
    frame = rows_frame(SweepRow, rows)
    content = io.BytesIO()
    if _is_parquet(path):
        frame.to_parquet(content, index=False)
    else:
        frame.to_csv(content, index=False)
    write_file(path, content.getvalue())
