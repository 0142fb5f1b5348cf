"""The race's files: all rows as JSON, and the tables: who ran, how fast, with what; what vramtune had predicted."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby, product
from pathlib import Path
from typing import Any

from benchmarks.race.names import CONTESTANTS, PIPELINES
from benchmarks.race.rows import CONTEXT_BYTES, LINKS, Base, Key, Row, bases, best, foregone
from benchmarks.results_file import environment, result_path, table, write_result

NAME = "race"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
CARD = "a simulated card (tests/nullcuda), no GPU"
WHAT_THE_CLOCK_CANNOT_SAY = [
    "PyTorch's real CUDA code on a simulated card: nothing here was measured on a GPU. The allocator, streams, events, page-",
    "locking, bytes and the order of everything are real; seconds are a model's. It does not know how fast kernels really are",
    "(a roofline of PyTorch's FLOP formulas), how long the Python code of hooks takes (only launches, copies and calls cost",
    "the host time), how copies and kernels slow one another down, waits of one thread of the host for another, and the disk.",
]
HEADER = [
    "contestant", "seconds", "x resident", "x bound", "first call, s", "set-up, s", "device peak, MB", "reserved, MB",
    "page-locked, MB", "in, MB", "out, MB", "copies", "host waits", "waited, s", "cudaMallocs", "retries",
]  # fmt: skip
MODES = {
    "all resident": "resident",
    "model offload": "model",
    "group offload, block, stream": "group-block",
    "group offload, leaf, stream": "group-leaf",
    "sequential offload": "sequential",
}
"""Of diffusers, as vramtune names them, and as the race does."""


RULE = "What failed at one link for another reason than a lack of memory was not tried at the others: it counts as a run there."


def write(rows: Iterable[Row]) -> list[str]:
    """Write both files; the tables' lines."""
    known = list(rows)
    lines = report(known)
    path = result_path(NAME).with_suffix(".json")
    path.write_text("[\n" + ",\n".join(row.as_json() for row in known) + "\n]\n")
    return [*lines, "", f"Written to {path} and {write_result(NAME, lines)}."]


def load(path: Path) -> list[Row]:
    """The rows of a result file."""
    return [Row.of_json(json.dumps(each)) for each in json.loads(path.read_text())]


def report(rows: list[Row]) -> list[str]:
    """The file's lines."""
    rows = with_foregone(rows)
    known, chosen = bases(rows), best(rows)
    return [
        "# The race: the same pipelines, memory and link for everyone",
        "",
        *environment("python -m benchmarks.race", gpu=CARD),
        f"- Rivals: {rivals()}",
        *(f"- {pipeline}: {title(known, pipeline)}" for pipeline in PIPELINES if any(p == pipeline for p, _ in known)),
        "",
        *WHAT_THE_CLOCK_CANNOT_SAY,
        "",
        "Seconds are a steady call's, of the best of a contestant's settings. *x resident*: by the same call with all weights on",
        "a card that has room. *x bound*: by seconds that no contestant can beat (benchmarks/race/bound.py). Device peak: the",
        "process's, its context with it; reserved: without it. Copies: both ways, on the card left out. Retries: of PyTorch's allocator, which gave memory back",
        "and asked again.",
        "",
        not_tried(rows),
        *(line for place, group in groupby(chosen, key=place_of) for line in section(place, list(group), known)),
        *predictions(chosen),
        *predicted_modes(chosen),
    ]


def title(known: dict[tuple[str, str], Base], pipeline: str) -> str:
    """What it is and takes."""
    base = next(base for (name, _), base in known.items() if name == pipeline)
    weights = ", ".join(f"{name} {megabytes(size)}" for name, size in base.weights.items())
    return f"{PIPELINES[pipeline]}, {megabytes(base.peak_bytes)} MB resident, of that MB of weights: {weights}"


def keys(rows: list[Row]) -> Iterator[Key]:
    """Every setting of everyone, at every place where someone has run."""
    places = dict.fromkeys((row.key.pipeline, row.key.link, row.key.percent) for row in rows)
    for (pipeline, link, percent), (name, contestant) in product(places, CONTESTANTS.items()):
        if percent is not None and name != "resident":
            for knob in contestant.knobs:
                yield Key(pipeline=pipeline, link=link, percent=percent, contestant=name, knob=knob)


def with_foregone(rows: list[Row]) -> list[Row]:
    """With those that were not made since they are known to fail."""
    known = {row.key for row in rows}
    return [*rows, *foregone(rows, (key for key in keys(rows) if key not in known)).values()]


def not_tried(rows: list[Row]) -> str:
    """Whose settings have not all been tried at every place, or are not known to fail: who knows whether another is faster."""
    known = {row.key for row in rows}
    wanted = Counter(key.contestant for key in keys(rows))
    num_runs = Counter(key.contestant for key in keys(rows) if key in known)
    lacking = [
        f"{CONTESTANTS[name].title} {num_runs[name]} of {number}"
        for name, number in wanted.items()
        if num_runs[name] < number
    ]
    if not lacking:
        return f"Every setting of everyone was tried everywhere. {RULE}"
    return f"**Not all has been run yet**, so that who lacks runs may be faster than shown. Runs: {', '.join(lacking)}. {RULE}"


def rivals() -> str:
    """The pins that are contestants."""
    packages = {contestant.package for contestant in CONTESTANTS.values()}
    pins = [line.split("==") for line in REQUIREMENTS.read_text().splitlines() if "==" in line]
    return ", ".join(f"{name} {pin}" for name, pin in pins if name in packages)


def place_of(row: Row) -> tuple[str, str, int]:
    """Pipeline, link and cap."""
    assert row.key.percent is not None
    return row.key.pipeline, row.key.link, row.key.percent


def section(place: tuple[str, str, int], rows: list[Row], known: dict[tuple[str, str], Base]) -> Iterator[str]:
    """The table of one cap."""
    pipeline, link, percent = place
    base = known[pipeline, link]
    bound = base.bound_seconds(rows[0])
    yield ""
    yield f"## {pipeline}, {percent}% = {megabytes(rows[0].cap_bytes)} MB, {link} ({LINKS[link] / 1e9:g} GB/s)"
    yield ""
    yield f"Resident {base.row.seconds:.4f} s, bound {bound:.4f} s."
    yield ""
    yield from table(HEADER, [cells(row, base.row.seconds, bound) for row in rows if not row.reason])
    yield ""
    for row in rows:
        if row.reason:
            yield f"- Did not run{f' at {row.seen_at}' if row.seen_at else ''}: {name_of(row)}: {row.reason}"


def name_of(row: Row) -> str:
    """The contestant and its setting."""
    knob = f" ({row.key.knob})" if row.key.knob else ""
    return CONTESTANTS[row.key.contestant].title + knob


def cells(row: Row, resident_seconds: float, bound_seconds: float) -> list[str]:
    """One line of a table."""
    found, counted = row.found, row.found["counters"]
    return [
        name_of(row),
        f"{row.seconds:.4f}",
        f"{row.seconds / resident_seconds:.3f}",
        f"{row.seconds / bound_seconds:.3f}",
        f"{found['first_seconds']:.3f}",
        f"{found['setup_seconds']:.2f}",
        megabytes(peak_bytes(row)),
        megabytes(peak_bytes(row) - CONTEXT_BYTES),
        megabytes(counted["pinned_peak_bytes"]),
        megabytes(counted["to_card_bytes"]),
        megabytes(counted["from_card_bytes"]),
        str(counted["num_to_card_copies"] + counted["num_from_card_copies"]),
        str(counted["num_host_waits"]),
        f"{counted['host_wait_seconds']:.3f}",
        str(counted["num_mallocs"]),
        str(found["num_alloc_retries"]),
    ]


def peak_bytes(row: Row) -> int:
    """What the process took of the card in a steady call."""
    return int(row.found["counters"]["used_peak_bytes"])


def most_taken_bytes(row: Row) -> int:
    """The same in the first call or a steady one."""
    return max(peak_bytes(row), int(row.found["first_counters"]["used_peak_bytes"]))


def megabytes(num_bytes: float) -> str:
    """In 10^6 bytes."""
    return f"{num_bytes / 1e6:.0f}"


def predictions(rows: list[Row]) -> Iterator[str]:
    """vramtune's own, beside what was counted."""
    header = ["pipeline, link, cap", "seconds", "predicted", "off", "peak, MB", "predicted", "off", "moved, MB", "predicted", "out of memory"]  # fmt: skip
    lines = []
    for row in rows:
        said = row.found.get("predicted")
        if said is None:
            continue
        measured: dict[str, Any] = said["measured"]
        peak = most_taken_bytes(row)
        lines.append(
            [
                f"{row.key.pipeline}, {row.key.link}, {row.key.percent}%",
                f"{row.seconds:.4f}",
                f"{said['seconds']:.4f}",
                f"{said['seconds'] / row.seconds - 1:+.1%}",
                f"{peak / 1e6:.1f}",
                f"{said['peak_bytes'] / 1e6:.1f}",
                f"{said['peak_bytes'] / peak - 1:+.2%}",
                f"{measured['moved_bytes'] / 1e6:.1f}",
                f"{said['moved_bytes'] / 1e6:.1f}",
                str(measured["num_out_of_memory"]),
            ]
        )
    if lines:
        yield from ["", "## vramtune: predicted, and run", "", *table(header, lines)]


def predicted_modes(rows: list[Row]) -> Iterator[str]:
    """diffusers' modes as `compare` predicts them, beside what was counted: PyTorch keeps what the cap leaves room for."""
    header = [
        "pipeline, link, cap",
        "mode",
        "seconds",
        "predicted",
        "peak, MB",
        "needed, predicted",
        "at the most",
        "off",
        "fits",
        "predicted",
    ]
    by_place = {(place_of(row), row.key.contestant): row for row in rows}
    lines = []
    for row in rows:
        for mode in row.found.get("predicted", {}).get("stock", ()):
            run = by_place.get((place_of(row), MODES.get(mode["mode"], "")))
            if run is None:
                continue
            peak = 0 if run.reason else peak_bytes(run)
            most = min(mode["high"]["peak_bytes"], run.cap_bytes)
            lines.append(
                [
                    f"{row.key.pipeline}, {row.key.link}, {row.key.percent}%",
                    mode["mode"],
                    "" if run.reason else f"{run.seconds:.4f}",
                    f"{mode['seconds']:.4f}",
                    f"{peak / 1e6:.1f}" if peak else "",
                    f"{mode['peak_bytes'] / 1e6:.1f}",
                    f"{most / 1e6:.1f}",
                    f"{most / peak - 1:+.1%}" if peak else "",
                    "no" if run.reason else "yes",
                    {True: "yes", False: "no", None: "unknown"}[mode["fits"]],
                ]
            )
    if lines:
        yield from ["", "## diffusers' modes: predicted by vramtune, and run", "", *table(header, lines)]
