"""The race's rows and tables: what need not be run again at another link, what counts as tried."""

from dataclasses import replace
from typing import Any

from benchmarks.race.names import CONTESTANTS
from benchmarks.race.report import not_tried, report, with_foregone
from benchmarks.race.rows import CONTEXT_BYTES, Key, Row, foregone

KEY = Key(pipeline="sdxl", link="pcie4x8", percent=60, contestant="aircanvas", knob="")
OTHER_LINK = replace(KEY, link="pcie4x16")
COUNTED = {"used_peak_bytes": CONTEXT_BYTES + 4 * 10**9, "kernel_seconds": 1.0}
RESIDENT = {
    "seconds": 1.0,
    "weights": {"unet": 2 * 10**9, "vae": 10**9},
    "denoiser_activation_bytes": 10**9,
    "first_counters": COUNTED,
    "counters": COUNTED,
}
ERROR = {"step": "set-up", "failed": "FileNotFoundError: config.json"}


def row(key: Key, found: dict[str, Any]) -> Row:
    return Row(key=key, cap_bytes=2 * 10**9, found=found)


def resident(link: str) -> Row:
    return row(Key(pipeline="sdxl", link=link, percent=None, contestant="resident", knob=""), RESIDENT)


def test_what_failed_for_good_is_known_at_every_link() -> None:
    known = foregone([row(KEY, ERROR)], [OTHER_LINK, replace(OTHER_LINK, percent=40), replace(OTHER_LINK, knob="1")])
    assert known == {OTHER_LINK: Row(key=OTHER_LINK, cap_bytes=2 * 10**9, found=ERROR, seen_at="pcie4x8")}


def test_memory_time_and_a_lost_process_are_tried_again() -> None:
    for found in (
        {"step": "first call", "failed": "OutOfMemoryError: CUDA out of memory."},
        {"failed": "no end within 400 s of real time"},
        {"failed": "the process ended with -9"},
        RESIDENT,
    ):
        assert foregone([row(KEY, found)], [OTHER_LINK]) == {}


def test_it_counts_as_a_run_and_is_named_where_it_is_known_to_fail() -> None:
    ran = row(replace(OTHER_LINK, contestant="model"), ERROR | {"failed": "OutOfMemoryError: out of memory"})
    rows = [resident("pcie4x8"), resident("pcie4x16"), row(KEY, ERROR), ran]
    title = CONTESTANTS["aircanvas"].title
    assert f"{title} 1 of 2" in not_tried(rows)
    assert title not in not_tried(with_foregone(rows))
    table = "\n".join(report(rows)).partition("## sdxl, 60% = 2000 MB, pcie4x16")[2]
    assert f"- Did not run at pcie4x8: {title}: set-up: FileNotFoundError: config.json" in table
