"""Predicted beside published: measurements of diffusers pipelines on real GPUs that others made and published.

`published.csv` holds one measurement a line: settings, mode, GPU, what was counted, where it was read, and how far to
trust it (A: script and counter given; B: settings given; C: something assumed). Each is predicted from the catalog's
pipeline at those settings, on the card as it is listed. Rows from before PyTorch 2.9 are predicted as it was then: RMS
norm took several kernels, and Hopper had FlashAttention-2. One row's time is beyond float32's peak: it had TF32.

    python -m benchmarks.against_published              # all rows; writes results/against_published_<date>.md
    python -m benchmarks.against_published --only flux  # rows whose id matches

Needs no GPU.
"""

import argparse
import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.results_file import environment, table, write_result
from vramtune import Profile, catalog
from vramtune.catalog.dtypes import cast
from vramtune.cli.inputs import call_kwargs
from vramtune.machine.gpus import find_gpu
from vramtune.pricing.price import price
from vramtune.profiler import cuda_kernels
from vramtune.profiler.follow import follow
from vramtune.schema import Device, Stage, Trace
from vramtune.tuner.stock_modes import stock_modes
from vramtune.units import GIB

PUBLISHED = Path(__file__).parent / "published.csv"
NAMES = {"hunyuan-video": "hunyuanvideo", "ltx-2b": "ltx-video"}
"""Models that the catalog has under another name."""
SAFETY_CHECKER = "the catalog has no safety checker"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
FLASH_ATTENTION_2 = 0.35 * 989e12
"""FLOP/s on an H100 (35% of its peak: FlashAttention-3's paper), and on a B200 no more: assumed."""
MODES = {
    "resident": "all resident",
    "model_offload": "model offload",
    "sequential": "sequential offload",
    "group_leaf_stream": "group offload, leaf, stream",
    "group_block": "group offload, block",
}
WHOLE = ("pipeline", "denoise")
"""Scopes that count every step."""
HEADER = ["row", "card", "mode", "trust", "published", "predicted", "low", "high", "error", "cause"]
SUMMARY = [
    "trust A and B",
    "rows",
    "median absolute error",
    "median error",
    "worst",
    "within 25%",
    "between low and high",
    "width",
]
FAR, FAR_IN_MEMORY = 0.25, 0.12
"""Errors from which on a cause must be named..."""
CAUSES = {
    "t20-sd15-A100-b1": "the host: 33 microseconds an operation",
    "xf-sd15-T4": "PyTorch 1.13, xFormers",
    "sf-sd15-RTX4090": "the host: 31 microseconds an operation, 18 in another row of this card",
    "sf-sdxl512-RTX4080": "the host: 17 microseconds an operation",
    "sg-flux-te-H100": "the host; SGLang's own modules",
    "sg-flux-vae-H100": "SGLang's own modules",
    "quanto-pixart-b1-s": "PyTorch 2.4 on Hopper",
    "elastic-flux-B200": "the only row of its architecture: nothing was fitted to it",
    "para-hunyuan-L20": "attention under a mask is priced as the H100's; this is 93% of the card's peak",
    "qwen-block-A100": "copies back at 0.8 GB/s",
    "sd3-moff-not5-s": "copies back at less than 0.5 GB/s",
    "ci-ltx13b-leaf-s": "its host's copies: 10 to 13 GB/s where 25 are usual",
    "dq-flux-moff-s": "copies from and into ordinary memory faster than assumed",
    "pab-latte-s": "not known",
    "doc-hunyuandit-s": "not known; June 2024",
    "ci-sdxl-leaf-mem": "published with one digit",
    "sx-seq-s": "its host: 0.9 ms a tensor",
    "sx-slice-seq-s": "its host: 0.9 ms a tensor",
}
"""...and those that are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A published measurement; `value` is seconds (a loop's of one iteration) or GiB."""

    id: str
    trust: str
    gpu: str
    mode: str
    scope: str
    quantity: str
    source: str
    value: float
    call: "PublishedCall"

    @property
    def is_seconds(self) -> bool:
        """Whether it is a time; else it is memory."""
        return self.quantity == "seconds"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedCall:
    """A pipeline and the settings of its call, which several measurements share."""

    model: str
    dtype: str
    vae_options: tuple[str, ...]
    dropped: tuple[str, ...]
    """Components that were left out."""
    is_older: bool
    """Whether PyTorch was older than 2.9."""
    has_tensorfloat32: bool
    """Whether matrix products in float32 were rounded to it."""
    settings: tuple[tuple[str, int], ...]
    """By the command line's names."""
    kwargs: tuple[tuple[str, Any], ...]
    """Other arguments of the call."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX", help="ids of rows")
    options = parser.parse_args()
    rows = [row for row in published() if re.search(options.only, row.id)]
    guesses, cells = [], []
    for row in tqdm(rows, unit="row"):
        head = [row.id, row.gpu, row.mode, row.trust, amount(row, row.value)]
        if reason := why_not(row):
            cells.append([*head, "", "", "", "", reason])
            continue
        guess = predicted(row)
        guesses.append((row, guess))
        is_far = abs(guess.error(row)) > (FAR if row.is_seconds else FAR_IN_MEMORY)
        cause = CAUSES.get(row.id, "") if is_far else ""
        shown = [amount(row, value) for value in (guess.expected, guess.low, guess.high)]
        cells.append([*head, *shown, f"{guess.error(row):+.0%}", cause])
    lines = [
        "# Predicted beside published",
        "",
        *environment("python -m benchmarks.against_published"),
        "- Errors are (predicted - published) / published; it/s are turned over into seconds. Nothing here was measured by us,",
        "  and no rate is fitted to these rows but what the A10G's power limit leaves: they are data sheets' and an H100's. How",
        "  sure they are (low, high) is.",
        "",
        *table(SUMMARY, summaries(guesses)),
        "",
        *table(HEADER, cells),
    ]
    print(*lines, sep="\n")
    if not options.only:
        print(write_result("against_published", lines))


def published() -> Iterator[Row]:
    """The measurements, in the file's order."""
    with PUBLISHED.open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            value = float(line["value"])
            if line["quantity"] == "it_per_s":
                line["quantity"], value = "seconds", 1 / value
            yield Row(
                id=line["id"],
                trust=line["trust"][0],
                gpu=line["gpu"],
                mode=line["mode"],
                scope="step" if line["scope"] == "loop" else line["scope"],
                quantity=line["quantity"],
                source=line["source"],
                value=value,
                call=published_call(line),
            )


def published_call(line: dict[str, str]) -> PublishedCall:
    """The call of a line of the file."""
    extra = json.loads(line["extra"] or "{}")
    dropped = tuple(extra.pop("drop", ()))
    if extra.pop("safety_checker", False):
        dropped = (SAFETY_CHECKER, *dropped)
    has_tensorfloat32 = extra.pop("tf32", False)
    # a step is like another: few are enough where a row counts one of them, or memory
    steps = extra.pop("steps_traced", int(line["steps"]) if line["scope"] in WHOLE else 4)
    settings = {"height": int(line["height"]), "width": int(line["width"]), "steps": steps}
    if line["frames"]:
        settings["frames"] = int(line["frames"])
    if line["batch"] != "1":
        settings["batch"] = int(line["batch"])
    if line["guidance"].startswith("true CFG"):
        extra |= {"true_cfg_scale": 4.0, "negative_prompt": " "}
    return PublishedCall(
        model=NAMES.get(line["model"], line["model"]),
        dtype=line["dtype"],
        vae_options=tuple(filter(None, line["vae_options"].split(","))),
        dropped=dropped,
        is_older=line["is_older"] == "yes",
        has_tensorfloat32=has_tensorfloat32,
        settings=tuple(settings.items()),
        kwargs=tuple(extra.items()),
    )


def why_not(row: Row) -> str | None:
    """Why a row is not predicted, or None."""
    if row.gpu == "unknown":
        return "card not named"
    if row.mode not in MODES:
        return "only the denoiser is offloaded"
    if row.call.model not in {entry.name for entry in catalog.models()}:
        return "not in the catalog"
    if SAFETY_CHECKER in row.call.dropped:
        return SAFETY_CHECKER
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """What is predicted for a row, and between what it is likely to be."""

    expected: float
    low: float
    high: float

    def error(self, row: Row) -> float:
        """A share of what was published."""
        return self.expected / row.value - 1


def predicted(row: Row) -> Guess:
    """What the row counts, as predicted."""
    profile = scoped(price(followed(row.call), card(row)), row.scope)
    if row.quantity.startswith("weights"):
        weights = sum(component.weights.allocated_bytes for component in profile.components) / GIB
        return Guess(expected=weights, low=weights, high=weights)
    if row.quantity.startswith("peak_allocated"):
        profile = counting_allocated(profile)
    mode = next(mode for mode in stock_modes(without_context(profile)) if mode.mode == MODES[row.mode])
    figures = (mode, mode.low, mode.high)
    if not row.is_seconds:
        expected, low, high = (figure.peak_bytes / GIB for figure in figures)
    else:
        num_counted = profile.stages[0].num_iterations if row.scope == "step" else 1
        expected, low, high = (figure.seconds / num_counted for figure in figures)
    return Guess(expected=expected, low=low, high=high)


def card(row: Row) -> Device:
    """The card as it is listed, but for attention: FlashAttention-2 was not made for Hopper and what came after it."""
    device = find_gpu(row.gpu)
    if not (row.call.is_older and row.gpu.startswith(("H100", "B200"))):
        return device
    share = FLASH_ATTENTION_2 / device.flops_per_second["bfloat16"]
    shares = device.efficiency_fraction | {"attention": share, "narrow_attention": share}
    return replace(device, efficiency_fraction=shares)


@cache
def followed(call: PublishedCall) -> Trace:
    """The call on tensors without values, once for all cards."""
    pipe = catalog.load(call.model)
    for name in call.dropped:
        if name in pipe.components:
            setattr(pipe, name, None)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            cast(part, dtype=DTYPES[call.dtype])
    for option in call.vae_options:
        getattr(pipe.vae, f"enable_{option}")()
    before = cuda_kernels.rms_norm, torch.backends.cuda.matmul.allow_tf32
    if call.is_older:
        cuda_kernels.rms_norm = lambda *args, **kwargs: None  # no kernel of its own: it is followed through its parts
    torch.backends.cuda.matmul.allow_tf32 = call.has_tensorfloat32
    try:
        kwargs = call_kwargs(pipe, dict(call.settings)) | dict(call.kwargs)
        return follow(pipe, call_kwargs=kwargs, kernels="cuda")
    finally:
        cuda_kernels.rms_norm, torch.backends.cuda.matmul.allow_tf32 = before


def scoped(profile: Profile, scope: str) -> Profile:
    """What of a call a row is about: `pipeline`, `denoise`, one `step`, one `forward`, or `components:a,b`."""
    longest = max(profile.stages, key=lambda stage: stage.num_iterations)
    if scope == "pipeline":
        return profile
    if scope in ("denoise", "step"):
        return replace(profile, stages=(longest,))
    if scope == "forward":
        activity = replace(longest.activities[0], num_calls=1)
        stages: list[Stage] = [replace(longest, num_iterations=1, pipeline_seconds=0.0, activities=(activity,))]
        names = {activity.component}
    else:
        names = set(scope.removeprefix("components:").split(","))
        stages = [replace(stage, pipeline_seconds=0.0) for stage in profile.stages if names >= set(stage.components)]
    return replace(
        profile, stages=tuple(stages), components=tuple(c for c in profile.components if c.name in names), variants=()
    )


def counting_allocated(profile: Profile) -> Profile:
    """With what calls allocate in the place of what the allocator reserves for them."""
    return replace(
        profile,
        stages=tuple(
            replace(
                stage,
                activities=tuple(
                    replace(activity, activation_bytes=max(s.activation_bytes for s in activity.segments))
                    for activity in stage.activities
                ),
            )
            for stage in profile.stages
        ),
    )


def without_context(profile: Profile) -> Profile:
    """On a device whose context and workspaces take nothing: PyTorch's counters do not see the one."""
    return replace(profile, device=replace(profile.device, context_bytes=0, workspace_bytes=0))


def amount(row: Row, value: float) -> str:
    """A value with its unit."""
    return f"{value:.4g} {'s' if row.is_seconds else 'GiB'}"


def summaries(guesses: Iterable[tuple[Row, Guess]]) -> list[list[str]]:
    """By quantity, mode and card, of the rows that can be trusted."""
    trusted = [(row, guess) for row, guess in guesses if row.trust in "AB"]
    cards = sorted({row.gpu for row, _ in trusted if row.is_seconds})
    kinds: list[tuple[str, Callable[[Row], bool]]] = [
        ("memory", lambda row: not row.is_seconds),
        ("memory, script and counter given", lambda row: not row.is_seconds and row.trust == "A"),
        ("seconds", lambda row: row.is_seconds),
        *((f"seconds, {name}", _of_mode(mode)) for mode, name in MODES.items()),
        *((f"seconds resident, {gpu}", _of_card(gpu)) for gpu in cards),
        ("all", lambda row: True),
    ]
    return [[name, *_summary(chosen)] for name, holds in kinds if (chosen := [(r, g) for r, g in trusted if holds(r)])]


def _summary(guesses: list[tuple[Row, Guess]]) -> list[str]:
    errors = [guess.error(row) for row, guess in guesses]
    near = sum(abs(error) <= FAR for error in errors) / len(errors)
    inside = sum(guess.low <= row.value <= guess.high for row, guess in guesses) / len(guesses)
    width = median((guess.high - guess.low) / guess.expected / 2 for _, guess in guesses)
    middle, worst = median(map(abs, errors)), max(errors, key=abs)
    shares = f"{middle:.0%}", f"{median(errors):+.0%}", f"{worst:+.0%}", f"{near:.0%}", f"{inside:.0%}"
    return [str(len(errors)), *shares, f"+-{width:.0%}"]


def _of_mode(mode: str) -> Callable[[Row], bool]:
    return lambda row: row.is_seconds and row.mode == mode


def _of_card(gpu: str) -> Callable[[Row], bool]:
    return lambda row: row.is_seconds and row.gpu == gpu and row.mode == "resident"


if __name__ == "__main__":
    main()
