"""Makes docs/race.md and its two plots of the newest result files, the simulated card's and the GPUs'.

.venv/bin/python -m benchmarks.race.page
.venv/bin/python -m benchmarks.race.page benchmarks/results/race_2026-11-27.json
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from textwrap import fill

from matplotlib.figure import Figure
from PIL import Image

from benchmarks.race.gpu_rows import Result, Run
from benchmarks.race.names import CONTESTANTS, LESS_LOCKED, PIPELINES
from benchmarks.race.report import (
    REQUIREMENTS,
    WHAT_THE_CLOCK_CANNOT_SAY,
    load,
    most_taken_bytes,
    name_of,
    not_tried,
    place_of,
    with_foregone,
)
from benchmarks.race.rows import LINKS, NUM_STEPS, Base, Row, bases, best
from benchmarks.results_file import RESULTS, table
from vramtune.units import GIB

DOCS = Path(__file__).parents[2] / "docs"
COLUMNS, NUM_COLORS = 2, 128
"""Of the plots."""
WITHIN = 0.005
"""Of the fastest: as fast. And of a peak: as predicted."""
RIVALS_OF_OURS = [name for name in CONTESTANTS if name not in ("vramtune", "resident")]

Place = tuple[str, str, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, default=max(RESULTS.glob("race_2*.json"), default=None))
    path = parser.parse_args().path
    rows = with_foregone(load(path))
    known, chosen = bases(rows), best(rows)
    link = min(LINKS, key=lambda name: (-sum(row.key.link == name and not row.reason for row in rows), name))
    drawn = [row for row in chosen if row.key.link == link and not row.reason]
    draw("race_seconds", drawn, lambda row: row.seconds, "seconds of a steady call")
    draw("race_pinned", drawn, lambda row: locked_bytes(row) / 1e9, "page-locked memory, GB")
    page = DOCS / "race.md"
    page.write_text("\n".join(lines(rows, known, path, link)) + "\n")
    print(page)


def lines(all_rows: list[Row], known: dict[tuple[str, str], Base], path: Path, link: str) -> Iterator[str]:
    """The page's."""
    rows = best(all_rows)
    tables = f"[all tables](../benchmarks/results/{path.with_suffix('.md').name})"
    yield from [
        "# The race",
        "",
        "vramtune, diffusers' own modes, and tools from PyPI that stream or offload a diffusers pipeline: the",
        "same pipelines, the same memory, the same link, the same version of PyTorch and diffusers; everyone unmodified. Made by",
        f"`make race` and `python -m benchmarks.race.page` of [{path.name}](../benchmarks/results/{path.name});",
        f"{tables}.",
        "",
        "**" + WHAT_THE_CLOCK_CANNOT_SAY[0].partition(". ")[0] + ".**",
        "What the clock knows, and what it does not, is [below](#limits).",
        "",
        *who_is_fastest(rows, known, link),
        "",
        "## Where vramtune loses",
        "",
        *(
            losses(all_rows)
            or ["Nowhere in these runs: it is the fastest, or within 0.5% of the fastest, and locks no more memory."]
        ),
        "",
        *with_less_locked(all_rows),
        "",
        *beside_predicted(rows, tables),
        "",
        "## Who did not run",
        "",
        not_tried(all_rows),
        "",
        *failures(rows),
        "",
        *on_gpus(),
        *method(known),
    ]


def who_is_fastest(rows: list[Row], known: dict[tuple[str, str], Base], link: str) -> Iterator[str]:
    """A line for each place, and the two plots."""
    yield from [
        "## Who is fastest",
        "",
        "Seconds of a steady call. *x bound*: by seconds that no contestant can beat: the call is cut at the ends of layers' kernels, where",
        "activations and the weights of that layer are on the card; between two cuts what the layers there use is copied, as far as",
        "there was no room for it at the first, and takes as long as the copies or the kernels; the cuts that say most count",
        "([bound.py](../benchmarks/race/bound.py)). *x own*: what vramtune's plan is predicted to take, by its own bound, which has whole groups for slots,",
        "activations as PyTorch reserves them, and nothing on the card between calls but what stays there all the time.",
        "",
    ]
    header = [
        "pipeline, cap, link",
        "vramtune, s",
        "x bound",
        "x own",
        "fastest other, s",
        "x bound",
        "which",
        "vramtune by it",
    ]
    yield from table(header, [summary(place, list(group), known) for place, group in groupby(rows, key=place_of)])
    yield ""
    yield f"![Seconds against memory, {link}](img/race_seconds.png)"
    yield ""
    yield f"![Page-locked memory, {link}](img/race_pinned.png)"


def with_less_locked(all_rows: list[Row]) -> Iterator[str]:
    """What a limit costs."""
    yield from [
        "## With less page-locked memory",
        "",
        f"vramtune told to lock no more than two thirds of its weights' bytes (`lock_gb`; *{LESS_LOCKED}*): the rest is staged by a thread of",
        "the host, at its speed. By pipeline and cap, at all links; seconds by those of the same call without the limit.",
        "",
    ]
    header = ["pipeline, cap", "runs", "locks, MB", "without the limit", "seconds by those without, from", "to"]
    yield from table(header, less_locked(all_rows))


def beside_predicted(rows: list[Row], tables: str) -> Iterator[str]:
    """How far off vramtune was about itself."""
    yield from [
        "## Predicted, and run",
        "",
        f"What vramtune predicted of itself, at all links; {tables} have each run. Peaks are the process's, with what PyTorch only caches.",
        "",
    ]
    header = ["pipeline", "runs", "seconds off, from", "to", "peak off, from", "to", "in MB, from", "to"]
    yield from table([*header, f"peaks within {WITHIN:.1%}", "bytes exact"], predicted(rows))
    yield ""
    yield "Where a peak was off, small tensors lay in one segment of 2 MiB more or less than was predicted."


def summary(place: Place, rows: list[Row], known: dict[tuple[str, str], Base]) -> list[str]:
    """One line: ours and the fastest other."""
    pipeline, link, percent = place
    bound = known[pipeline, link].bound_seconds(rows[0])
    ours, other = ours_of(rows), fastest_other(rows)
    cells = [f"{pipeline}, {percent}%, {link}"]
    cells += (
        [f"{ours.seconds:.4f}", f"{ours.seconds / bound:.3f}", f"{of_own_bound(ours):.3f}"]
        if ours
        else ["did not run", "", ""]
    )
    cells += [f"{other.seconds:.4f}", f"{other.seconds / bound:.3f}", name_of(other)] if other else ["none ran", "", ""]
    return [*cells, f"{ours.seconds / other.seconds:.3f}" if ours and other else ""]


def of_own_bound(ours: Row) -> float:
    """What the plan is predicted to take by what vramtune says that no plan can beat."""
    said = ours.found["predicted"]
    return float(said["seconds"] / said["bound_seconds"])


def ours_of(rows: list[Row]) -> Row | None:
    """Ours, if it ran."""
    return next((row for row in rows if row.key.contestant == "vramtune" and not row.reason), None)


def fastest_other(rows: list[Row]) -> Row | None:
    """Of those that ran; they are sorted."""
    return next((row for row in rows if row.key.contestant in RIVALS_OF_OURS and not row.reason), None)


def locked_bytes(row: Row) -> int:
    """The most that was page-locked."""
    return int(row.found["counters"]["pinned_peak_bytes"])


def less_locked(all_rows: list[Row]) -> Iterator[list[str]]:
    """By pipeline and cap, what a limit of what may be page-locked costs vramtune."""
    ours = [row for row in all_rows if row.key.contestant == "vramtune" and not row.reason]
    without = {place_of(row): row for row in ours if row.key.knob != LESS_LOCKED}
    limited = sorted((row for row in ours if row.key.knob == LESS_LOCKED), key=cap_of)
    for (pipeline, percent), group in groupby(limited, key=cap_of):
        pairs = [(row, without[place_of(row)]) for row in group]
        ratios = [row.seconds / free.seconds for row, free in pairs]
        most = [f"{max(map(locked_bytes, rows)) / 1e6:.0f}" for rows in zip(*pairs, strict=True)]
        yield [f"{pipeline}, {-percent}%", str(len(pairs)), *most, f"{min(ratios):.3f}", f"{max(ratios):.3f}"]


def cap_of(row: Row) -> tuple[str, int]:
    """Pipeline and cap, to sort by: the largest cap first."""
    return row.key.pipeline, -(row.key.percent or 0)


def losses(all_rows: list[Row]) -> list[str]:
    """Where another one is faster, or locks less memory than any setting of ours with which we are as fast as it."""
    found = []
    for place, group in groupby(best(all_rows), key=place_of):
        pipeline, link, percent = place
        rows = list(group)
        ours, other = ours_of(rows), fastest_other(rows)
        where = f"- {pipeline}, {percent}%, {link}"
        if ours is None:
            refused = next((row.reason for row in rows if row.key.contestant == "vramtune"), "not tried")
            others = f"{name_of(other)} did" if other else "nor did any other with the settings tried"
            found.append(f"{where}: it did not run, {others}. {refused}")
        if ours is None or other is None:
            continue
        if ours.seconds > other.seconds * (1 + WITHIN):
            found.append(f"{where}: {name_of(other)} takes {other.seconds:.4f} s, vramtune {ours.seconds:.4f} s.")
        tried = (row for row in all_rows if row.key.contestant == "vramtune" and row.key.percent and not row.reason)
        as_fast = [row for row in tried if place_of(row) == place and row.seconds <= other.seconds * (1 + WITHIN)]
        locked, least = min(map(locked_bytes, as_fast), default=0), locked_bytes(other)
        if locked > least:
            found.append(
                f"{where}: it locks {locked / 1e6:.0f} MB of the host's memory, {name_of(other)} {least / 1e6:.0f} MB, "
                f"at {other.seconds / ours.seconds:.2f} times its seconds."
            )
    return found


def predicted(rows: list[Row]) -> list[list[str]]:
    """By pipeline, how far off vramtune's predictions are."""
    ours = [row for row in rows if row.key.contestant == "vramtune" and not row.reason]
    lines = []
    for name, group in groupby(ours, key=lambda row: row.key.pipeline):
        runs = list(group)
        said = [row.found["predicted"] for row in runs]
        seconds = [each["seconds"] / row.seconds - 1 for each, row in zip(said, runs, strict=True)]
        taken = [most_taken_bytes(row) for row in runs]
        peaks = [each["peak_bytes"] / ran - 1 for each, ran in zip(said, taken, strict=True)]
        excess = [(each["peak_bytes"] - ran) / 1e6 for each, ran in zip(said, taken, strict=True)]
        close = sum(abs(peak) <= WITHIN for peak in peaks)
        exact = sum(each["moved_bytes"] == each["measured"]["moved_bytes"] for each in said)
        off = [f"{min(seconds):+.1%}", f"{max(seconds):+.1%}", f"{min(peaks):+.2%}", f"{max(peaks):+.2%}"]
        off += [f"{min(excess):+.1f}", f"{max(excess):+.1f}"]
        lines.append([name, str(len(runs)), *off, f"{close} of {len(peaks)}", f"{exact} of {len(runs)}"])
    return lines


def failures(rows: list[Row]) -> list[str]:
    """Each reason once, with the places."""
    places = defaultdict(list)
    for row in rows:
        if row.reason:
            reason = row.reason.partition(" Tried to allocate")[0]
            places[CONTESTANTS[row.key.contestant].title, reason].append(f"{row.key.pipeline} {row.key.percent}%")
    return [f"- {title}: {', '.join(dict.fromkeys(where))}: {reason}" for (title, reason), where in places.items()]


def on_gpus() -> Iterator[str]:
    """The same between real clocks."""
    yield "## With real clocks"
    yield ""
    yield paragraph(
        "Everyone in a process of its own; PyTorch's allocator is refused what exceeds the cap less the context. Random "
        "weights, real shapes, dtypes and kernels; seconds of a steady call, wall clock, one run each on a host "
        "whose pace changes: a tenth more or less means nothing. The link is a data centre's: on a desktop's, copies weigh two to four times as much. "
        "`fp16-vae-` is a VAE that stays in float16, as people have it: with SDXL's own, which the pipeline casts to "
        "float32 for the decode, whoever hooks its layers fails."
    )
    for path in sorted(RESULTS.glob("race_on_gpu_*.json")):
        result, date = Result.load(path), path.stem.rpartition("_")[2]
        yield from ["", result.header[0].replace("# The race on", "###").replace("measured", f"measured {date}"), ""]
        yield f"[All tables](../benchmarks/results/{path.with_suffix('.md').name}), and what was predicted."
        yield from ["", *result.header[4:], ""]
        header = ["model, cap", "resident, s", "vramtune, s", "fastest other, s", "which", "vramtune by it"]
        header += ["page-locked GiB", "other's"]
        yield from table(header, [gpu_summary(runs, resident) for runs, resident in result.places()])
        yield ""
        for runs, _ in result.places():
            failed = [f"{run.title} ({cause(run)})" for run in runs if run.reason]
            if failed:
                yield f"- Did not run at {gpu_place(runs[0])}: {'; '.join(failed)}."
            lacking = [CONTESTANTS[name].title for name in RIVALS_OF_OURS if name not in {r.contestant for r in runs}]
            if lacking:
                yield f"- Not tried at {gpu_place(runs[0])}, so that one of them may be faster: {', '.join(lacking)}."
        yield ""


def gpu_place(run: Run) -> str:
    """Model and cap."""
    return f"{run.model}, {(run.cap_bytes or 0) / GIB:.4g} GiB"


def gpu_summary(runs: list[Run], resident: Run) -> list[str]:
    """One line: ours and the fastest other."""
    ours = next((run for run in runs if run.contestant == "vramtune" and not run.reason), None)
    other = next((run for run in runs if run.contestant != "vramtune" and not run.reason), None)
    both = [ours, other]
    locked = [f"{run.found['counters']['pinned_bytes'] / GIB:.1f}" if run else "" for run in both]
    return [
        gpu_place(runs[0]),
        f"{resident.seconds:.2f}",
        f"{ours.seconds:.2f}" if ours else "did not run",
        *((f"{other.seconds:.2f}", other.title) if other else ("none ran", "")),
        f"{ours.seconds / other.seconds:.2f}" if ours and other else "",
        *locked,
    ]


def cause(run: Run) -> str:
    """Why it did not run, in a few words."""
    reason = run.reason or ""
    return "out of memory" if "OutOfMemoryError" in reason else reason.partition(": ")[2].partition(" Tried")[0]


def method(known: dict[tuple[str, str], Base]) -> Iterator[str]:
    """How it was done, and what it cannot say."""
    yield from ["## Method", ""]
    yield paragraph(
        "PyTorch's CUDA build, unmodified, runs over libraries that stand in the place of NVIDIA's "
        "([the null card](../tests/nullcuda/README.md)). It has virtual clocks: one for each thread of the host and each "
        "stream, and three engines (copies to the card, copies back, kernels) that each do one thing at a time. "
        "A kernel takes a roofline of PyTorch's own FLOP formulas at 40 TFLOP/s and 250 GB/s; cuDNN copies a convolution's "
        "images, as it was seen to on GPUs, which takes memory and time; a launch takes the host 8 "
        "microseconds with PyTorch's own work, a copy 8, `cudaMalloc` 100. `cudaFree` waits for the card."
    )
    yield ""
    pipelines = sorted({pipeline for pipeline, _ in known}, key=list(PIPELINES).index)
    for pipeline in pipelines:
        base = next(base for (name, _), base in known.items() if name == pipeline)
        yield f"- **{pipeline}**: {PIPELINES[pipeline]}, {NUM_STEPS} steps, {base.peak_bytes / 1e9:.2f} GB when all is resident."
    yield ""
    yield paragraph(
        "They are real classes at the proportions of the models that they are named after, a few times smaller, with weights "
        "that nobody wrote. A cap is the card's memory: that share of what the pipeline takes when all is resident. Each run "
        "has a process of its own. A contestant is installed as its own text says; where it has a setting, the few values in "
        "[names.py](../benchmarks/race/names.py) are tried and the fastest counts; where it must know what activations take, "
        "it is told ([contestants.py](../benchmarks/race/contestants.py)). A steady call comes after as many as it needs to "
        f"learn. Versions are in [requirements.txt](../benchmarks/race/{REQUIREMENTS.name}). Rates of links, in GB/s of "
        "page-locked memory: " + ", ".join(f"{name} {rate / 1e9:g}" for name, rate in LINKS.items()) + "; of pageable "
        "memory half, at most 10."
    )
    yield from ["", "## Limits", "", *WHAT_THE_CLOCK_CANNOT_SAY]


def paragraph(text: str) -> str:
    """In lines."""
    return fill(text, width=120, break_long_words=False, break_on_hyphens=False)


def draw(name: str, rows: list[Row], value: Callable[[Row], float], label: str) -> None:
    """One axes a pipeline, one line a contestant, over the cap."""
    pipelines = sorted({row.key.pipeline for row in rows}, key=list(PIPELINES).index)
    num_rows = -(-len(pipelines) // COLUMNS)
    figure = Figure(figsize=(5 * COLUMNS, 1.0 + 3.4 * num_rows), layout="constrained")
    all_axes = figure.subplots(num_rows, COLUMNS, squeeze=False).flatten()
    for axes in all_axes[len(pipelines) :]:
        axes.set_axis_off()
    for axes, pipeline in zip(all_axes, pipelines, strict=False):
        for number, (contestant, about) in enumerate(CONTESTANTS.items()):
            points = sorted(
                (row.cap_bytes / 1e9, value(row))
                for row in rows
                if (row.key.pipeline, row.key.contestant) == (pipeline, contestant)
            )
            is_ours = contestant == "vramtune"
            axes.plot(
                [gigabytes for gigabytes, _ in points],
                [height for _, height in points],
                label=about.title,
                marker="os^vD<>ph*XdP"[number],
                color="black" if is_ours else f"C{number - 1}" if number <= 10 else "gray",
                linewidth=2.5 if is_ours else 1.2,
                zorder=3 if is_ours else 2,
            )
        axes.set(title=pipeline, xlabel="the card's memory, GB", ylabel=label)
        axes.set_ylim(0, 1.08 * max(value(row) for row in rows if row.key.pipeline == pipeline))
        axes.grid(alpha=0.3)
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    figure.suptitle("PyTorch's real CUDA code on a simulated card", fontsize="medium")
    path = DOCS / "img" / f"{name}.png"
    figure.savefig(path, dpi=110)
    Image.open(path).convert("RGB").quantize(NUM_COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
