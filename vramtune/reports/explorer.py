"""A sweep as one HTML page to choose on: its script is in the page, nothing is fetched."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from markupsafe import Markup

from vramtune.reports.rows import stage_label
from vramtune.reports.templating import render, template_text
from vramtune.schema import SweepRow, make_folder, write_file

PAGE = "index.html"
SCRIPT = "explorer.js"


def write_explorer(folder: str | Path, rows: Sequence[SweepRow], *, data: str | None = None) -> Path:
    """Write the page of a sweep into a folder, which is made where there is none; returns the page's path.

    `data` names the file of the rows beside the page, to which it links. Equal rows give equal pages. A `FileError` names
    what cannot be written.
    """
    place = make_folder(folder)
    script = template_text(SCRIPT)
    page = render(
        "explorer.html.jinja",
        answers=Markup(_json(rows)),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=data,
    )
    write_file(place / PAGE, page.encode())
    return place / PAGE


def _json(rows: Sequence[SweepRow]) -> str:
    """The rows as a tree of calls, their GPUs and plans, fit to stand in a page: no `<` begins an element there."""
    calls = [_call(several) for several in _groups(rows, lambda row: (row.model, _settings(row), row.quantization))]
    return msgspec.json.encode(calls).decode().replace("<", "\\u003c")


def _groups(rows: Sequence[SweepRow], key: Callable[[SweepRow], object]) -> list[list[SweepRow]]:
    """The rows by what they have in common, in order of the first of each."""
    found: dict[object, list[SweepRow]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return list(found.values())


def _call(rows: Sequence[SweepRow]) -> dict[str, object]:
    """One call of a model, as it is quantized."""
    first = rows[0]
    return {
        "model": first.model,
        "pipeline": first.pipeline_class,
        "settings": _settings(first),
        "quantization": first.quantization,
        "error": first.error,
        "gpus": [_gpu(several) for several in _groups(rows, lambda row: row.gpu) if several[0].gpu],
    }


def _settings(row: SweepRow) -> str:
    """What was asked of the call, in words."""
    size = f"{row.width}x{row.height}" if row.width is not None and row.height is not None else ""
    frames = f"{row.frames} frames" if row.frames is not None else ""
    steps = f"{row.steps} steps" if row.steps is not None else ""
    return ", ".join(filter(None, (size, frames, steps)))


def _gpu(rows: Sequence[SweepRow]) -> dict[str, object]:
    """One GPU, and a plan for each limit: budgets above what it gives have the same."""
    plans = {row.limit_bytes: _plan(row) for row in reversed(rows)}
    first = rows[0]
    return {
        "gpu": first.gpu,
        "memoryBytes": first.gpu_bytes,
        "leastBytes": first.least_bytes,
        "plans": list(reversed(plans.values())),
    }


def _plan(row: SweepRow) -> dict[str, object]:
    budget: dict[str, object] = {"askedBytes": row.asked_bytes, "limitBytes": row.limit_bytes, "fits": row.fits}
    if not row.fits:
        return budget
    return budget | {
        "isNarrow": row.is_narrow,
        "role": row.role,
        "permissions": row.permissions,
        "peakBytes": row.peak_bytes,
        "seconds": row.seconds,
        "lowSeconds": row.low_seconds,
        "highSeconds": row.high_seconds,
        "boundSeconds": row.bound_seconds,
        "movedBytes": row.moved_bytes,
        "stages": [
            {
                "name": stage_label(stage.name, stage.num_iterations),
                "seconds": stage.seconds,
                "computeSeconds": stage.compute_seconds,
                "peakBytes": stage.peak_bytes,
                "movedBytes": stage.moved_bytes,
            }
            for stage in row.swept_stages
        ],
    }
