"""All cases of a checkout: prepare the process, fork one for each, gather the results."""

import gc
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import transformers
from tqdm import tqdm

import vramtune
from benchmarks.classes import stand_ins, table
from benchmarks.classes.cases import Case, find_cases, take_over_tests
from benchmarks.classes.checks import ROOMY_GIB, fresh_gpu
from benchmarks.classes.processes import run_all
from benchmarks.classes.trial import Trial, note_death
from tests import tiny_pipelines
from tests.simgpu import load

PAGE = Path(__file__).parents[2] / "docs" / "classes.md"


@dataclass(frozen=True)
class Settings:
    """What the command line asks for."""

    checkout: Path
    out: Path
    only: str
    num_jobs: int
    limit_seconds: float
    patience_seconds: float
    again: bool
    loud: bool


def run(settings: Settings, command: str) -> int:
    """Run what has no result yet; write the page once everything has one. 1 where something does not work."""
    prepare(settings.checkout)
    every, failures = find_cases(settings.checkout)
    chosen = [case for case in every if re.search(settings.only, case.name)]
    settings.out.mkdir(parents=True, exist_ok=True)
    waiting = [case for case in chosen if settings.again or not is_done(settings.out, case)]
    print(f"{len(chosen)} of {len(every)} sets of dummies, {len(waiting)} of them without a result.")
    for name, text in failures.items():
        print(f"{name} cannot be imported: {text}", file=sys.stderr)
    run_cases(waiting, settings)
    results = [read(settings.out, case) for case in chosen if is_done(settings.out, case)]
    print(table.summary(results, failures).replace("**", ""))
    if all(is_done(settings.out, case) for case in every):
        everything = [read(settings.out, case) for case in every]
        PAGE.write_text("\n".join(table.page(everything, failures, command)) + "\n")
        print(PAGE)
    return 1 if any(table.verdict(result) == "fails" for result in results) else 0


def run_cases(cases: Sequence[Case], settings: Settings) -> None:
    """A progress bar, and a line for each case that does not work."""

    def run_one(case: Case) -> None:
        if not settings.loud:
            silence()
        Trial(case, file_of(settings.out, case), settings.patience_seconds).run()

    gc.collect()
    gc.freeze()  # children's collections leave alone what they share
    endings = run_all(cases, run_one, num_jobs=settings.num_jobs, limit_seconds=settings.limit_seconds)
    with tqdm(endings, total=len(cases), unit="case", smoothing=0) as bar:
        for case, how in bar:
            file = file_of(settings.out, case)
            if how:
                note_death(file, case, how)
            result = json.loads(file.read_text())
            bar.set_postfix_str(case.pipeline)
            if table.verdict(result) != "works":
                tqdm.write(table.line(result))


def silence() -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def file_of(folder: Path, case: Case) -> Path:
    return folder / f"{case.name.replace(' ', '-')}.json"


def read(folder: Path, case: Case) -> table.Result:
    found: table.Result = json.loads(file_of(folder, case).read_text())
    return found


def is_done(folder: Path, case: Case) -> bool:
    return file_of(folder, case).exists() and bool(read(folder, case)["is_done"])


# ---------------------------------------------------------------------------------------------------
# Once, before the forks


def prepare(checkout: Path) -> None:
    """The simulated GPU, no hub, everything imported, and diffusers' tests under their name."""
    warnings.simplefilter("ignore")
    sys.dont_write_bytecode = True  # the checkout is only read
    load()
    torch.set_num_threads(1)
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    logging.getLogger("vramtune").setLevel(logging.ERROR)
    stand_ins.without_hub()
    stand_ins.with_small_images()
    warm_up()
    take_over_tests(checkout)


def warm_up() -> None:
    """Import what is imported late, and measure the simulated GPU, so that no child has to."""
    fresh_gpu()
    pipe = tiny_pipelines.build("sd15")
    arguments = {"num_inference_steps": 2, "height": 32, "width": 32}
    with vramtune.autotune(pipe, ROOMY_GIB, call_kwargs=arguments, device="sim", progress=False):
        tiny_pipelines.run(pipe, "sd15")
    pipe.enable_model_cpu_offload(device="sim")
    tiny_pipelines.run(pipe, "sd15")
    fresh_gpu()
