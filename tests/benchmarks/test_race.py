"""The race's rows and tables: what need not be run again at another link, what counts as tried, what nobody can beat."""

from collections import deque
from dataclasses import replace
from itertools import accumulate
from random import Random
from typing import Any

import pytest

from benchmarks.race.bound import Call
from benchmarks.race.names import CONTESTANTS, LESS_LOCKED
from benchmarks.race.page import less_locked, losses
from benchmarks.race.report import load, not_tried, report, with_foregone
from benchmarks.race.rows import CONTEXT_BYTES, Key, Row, bases, foregone
from benchmarks.results_file import RESULTS

KEY = Key(pipeline="sdxl", link="pcie4x8", percent=60, contestant="aircanvas", knob="")
OTHER_LINK = replace(KEY, link="pcie4x16")
COUNTED = {"used_peak_bytes": CONTEXT_BYTES + 4 * 10**9, "kernel_seconds": 1.0}
RESIDENT = {
    "seconds": 1.0,
    "weights": {"unet": 2 * 10**9, "vae": 10**9},
    "call": {
        "num_calls": 8,
        "before": {"visits": [], "kernel_seconds": 0.1},
        "denoiser": {"visits": [[0, 2 * 10**9, 0.0, 0.1, 0]], "kernel_seconds": 0.1},
        "after": {"visits": [], "kernel_seconds": 0.1},
    },
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


def test_a_loss_by_refusal_says_who_ran_and_why_vramtune_did_not() -> None:
    refused = row(replace(KEY, contestant="vramtune"), {"step": "set-up", "failed": "BudgetError: does not fit."})
    other = row(replace(KEY, contestant="model"), RESIDENT)
    (said,) = losses([other, refused])
    assert (
        said == "- sdxl, 60%, pcie4x8: it did not run, diffusers: model offload did. set-up: BudgetError: does not fit."
    )
    (said,) = losses([refused])
    assert said.startswith("- sdxl, 60%, pcie4x8: it did not run, nor did any other with the settings tried.")


def that_ran(contestant: str, seconds: float, locked_mb: int, knob: str = "") -> Row:
    found = RESIDENT | {"seconds": seconds, "counters": COUNTED | {"pinned_peak_bytes": locked_mb * 10**6}}
    return row(replace(KEY, contestant=contestant, knob=knob), found)


def test_memory_that_is_page_locked_is_no_loss_where_a_setting_is_as_fast_and_locks_as_little() -> None:
    ours, other = that_ran("vramtune", 1.0, 600), that_ran("model", 1.5, 500)
    (said,) = losses([ours, other])
    assert "it locks 600 MB of the host's memory, diffusers: model offload 500 MB, at 1.50 times its seconds" in said
    slower, enough = (that_ran("vramtune", seconds, 400, LESS_LOCKED) for seconds in (1.6, 1.1))
    assert losses([ours, other, slower]) == [said]
    assert losses([ours, other, enough]) == []
    ((where, runs, *locked, low, high),) = less_locked([ours, other, enough])
    assert (where, runs, locked, low, high) == ("sdxl, 60%", "1", ["400", "600"], "1.100", "1.100")


def four_layers(live_bytes: int = 0) -> Call:
    """Of a hundred bytes and a second each, three times, between an encoder of as much and a decoder without weights."""
    layers = [[1 + number, 100, number, number + 1, live_bytes] for number in range(4)]
    encoder, decoder = [0, 100, 0, 1, 0], [5, 0, 0, 1, live_bytes]
    return Call.of(
        {
            "num_calls": 3,
            "before": {"visits": [encoder], "kernel_seconds": 1},
            "denoiser": {"visits": layers, "kernel_seconds": 4},
            "after": {"visits": [decoder], "kernel_seconds": 1},
        }
    )


def test_with_room_for_all_weights_a_call_takes_what_its_kernels_take() -> None:
    assert four_layers(20).least_seconds(520, 1.0) == 14.0


def test_what_has_no_room_is_copied_between_a_layers_end_and_its_next_begin() -> None:
    # beside a layer there is room for 50 bytes of the three that come until its next turn; their last one's kernels
    # follow; and once the encoder is among them
    assert four_layers().least_seconds(150, 1.0) == 3 * (250 + 1) + (350 + 1)
    assert four_layers().least_seconds(150, 2.0) == 3 * (125 + 1) + (175 + 1)


def test_activations_leave_less_room_when_most_are_alive() -> None:
    assert four_layers(40).least_seconds(150, 1.0) == 3 * (290 + 1) + (390 + 1)


def test_a_contestant_that_copies_ahead_in_any_way_takes_at_least_the_bound() -> None:
    random = Random(0)
    for _ in range(50):
        sizes = [random.randrange(1, 100) for _ in range(8)]
        seconds = [random.randrange(1, 60) for _ in range(8)]
        begins = [0, *accumulate(seconds)]
        visits = [[n, sizes[n], begins[n], begins[n + 1], 0] for n in range(8)]
        empty = {"visits": [], "kernel_seconds": 0}
        part = {"visits": visits, "kernel_seconds": begins[-1]}
        call = Call.of({"num_calls": 1, "before": empty, "denoiser": part, "after": empty})
        room = random.randrange(max(sizes), sum(sizes) + 1)
        assert call.least_seconds(room, 1.0) <= streamed_seconds(sizes, seconds, room) + 1e-9


def streamed_seconds(sizes: list[int], seconds: list[int], room: int) -> float:
    """Of a steady call in which each layer is copied as soon as there is room beside those that wait for their turn."""
    copied = computed = 0.0
    ends: list[float] = []
    waiting: deque[int] = deque()
    for turn in range(8 * 20):
        size = sizes[turn % 8]
        while sum(sizes[each % 8] for each in waiting) + size > room:
            copied = max(copied, ends[waiting.popleft()])
        waiting.append(turn)
        copied += size
        computed = max(computed, copied) + seconds[turn % 8]
        ends.append(computed)
    return (ends[-1] - ends[-1 - 8 * 10]) / 10


@pytest.mark.parametrize("path", sorted(RESULTS.glob("race_2*.json")), ids=lambda path: path.stem)
def test_nobody_beats_the_bound_in_the_committed_runs(path: Any) -> None:
    rows = load(path)
    known = bases(rows)
    ran = [row for row in rows if row.key.percent is not None and not row.reason]
    assert len(ran) > 50
    for each in ran:
        assert each.seconds >= known[each.key.pipeline, each.key.link].bound_seconds(each), each.key
