"""The tables of the race on a GPU: made of the committed runs, the best of each contestant, what failed last."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.race.gpu_rows import Result, Run
from benchmarks.race.page import on_gpus
from benchmarks.results_file import RESULTS

FILES = sorted(RESULTS.glob("race_on_gpu_*.json"))
COUNTED = {"used_peak_bytes": 2**30, "pinned_bytes": 0, "num_mallocs": 1}
FOUND = {"seconds": 1.0, "first_seconds": 2.0, "setup_seconds": 3.0, "first_counters": COUNTED, "counters": COUNTED}
RUN = Run(model="sdxl", cap_bytes=8 * 2**30, contestant="mmgp", found=FOUND)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_committed_tables_are_those_of_the_committed_runs(path: Path) -> None:
    assert path.with_suffix(".md").read_text() == "\n".join(Result.load(path).report()) + "\n"


def test_the_page_shows_them() -> None:
    page = (RESULTS.parents[1] / "docs" / "race.md").read_text()
    assert "\n".join(on_gpus()) in page


def test_the_fastest_setting_counts_and_what_failed_comes_last(tmp_path: Path) -> None:
    runs = [
        replace(RUN, cap_bytes=None, contestant="resident"),
        replace(
            RUN, contestant="model", found={"step": "first call", "failed": "OutOfMemoryError: CUDA out of memory."}
        ),
        replace(RUN, knob="1", found={**FOUND, "seconds": 3.0}),
        replace(RUN, knob="2", found={**FOUND, "seconds": 2.0}),
        replace(RUN, contestant="vramtune"),
    ]
    Result(header=["# The race"], runs=runs).save(tmp_path / "runs.json")
    result = Result.load(tmp_path / "runs.json")
    assert [run.found for run in result.runs] == json.loads(json.dumps([run.found for run in runs]))
    [(best, resident)] = result.places()
    assert resident == runs[0]
    assert [(run.contestant, run.knob) for run in best] == [("vramtune", ""), ("mmgp", "2"), ("model", "")]
    assert (
        "- Did not run: diffusers: model offload: first call: OutOfMemoryError: CUDA out of memory." in result.report()
    )
