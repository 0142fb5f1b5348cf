import itertools
import json

import pytest
from hypothesis import given, settings

from tests.profiles import profiles
from tests.reports import examples, seen
from vramtune import api
from vramtune.reports.trace import measurement_trace, timeline_trace

PROFILE, PLAN = examples.sdxl(), examples.sdxl_plan()
FIELDS = {
    "X": {"ph", "name", "pid", "tid", "ts", "dur", "args"},
    "C": {"ph", "name", "pid", "ts", "args"},
    "M": {"ph", "name", "pid", "tid", "args"},
}


def events(trace: bytes) -> list[dict]:
    """The events of a trace that keeps to the Trace Event Format."""
    document = json.loads(trace, parse_constant=pytest.fail)
    assert set(document) == {"displayTimeUnit", "otherData", "traceEvents"}
    assert document["displayTimeUnit"] in ("ms", "ns")
    named = {e["tid"] for e in document["traceEvents"] if (e["ph"], e["name"]) == ("M", "thread_name")}
    for event in document["traceEvents"]:
        assert set(event) == FIELDS[event["ph"]]
        assert type(event["name"]) is str
        assert type(event["pid"]) is int
        assert type(event.get("tid", 0)) is int
        assert all(type(event[f]) in (int, float) and event[f] >= 0 for f in ("ts", "dur") if f in event)
        assert event["args"]
        if event["ph"] == "C":
            assert all(type(value) is int for value in event["args"].values())
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            assert list(event["args"]) == ["name"]
        if event["ph"] == "X":
            assert event["tid"] in named
    return document["traceEvents"]


def of_kind(found: list[dict], phase: str, name: str = "") -> list[dict]:
    return [event for event in found if event["ph"] == phase and event["name"].startswith(name)]


def names(found: list[dict], kind: str) -> dict[int, str]:
    return {event["tid"]: event["args"]["name"] for event in of_kind(found, "M", kind)}


def spans(found: list[dict], thread: str) -> list[dict]:
    numbers = {name: tid for tid, name in names(found, "thread_name").items()}
    return [event for event in of_kind(found, "X") if event["tid"] == numbers[thread]]


PREDICTED = events(timeline_trace(seen.timeline(PROFILE, PLAN), plan=PLAN))
MEASURED = events(measurement_trace(seen.measurement(PLAN)))


def test_the_process_says_whether_it_was_predicted_or_measured():
    assert names(PREDICTED, "process_name") == {
        0: "StableDiffusionXLPipeline in 6.00 GiB of GeForce RTX 4060 (predicted)"
    }
    assert names(MEASURED, "process_name") == {0: "GeForce RTX 4060 (measured)"}


def test_the_file_says_what_it_is_and_a_predicted_one_names_the_bound():
    predicted = json.loads(timeline_trace(seen.timeline(PROFILE, PLAN), plan=PLAN))["otherData"]
    measured = json.loads(measurement_trace(seen.measurement(PLAN)))["otherData"]
    estimate = PLAN.estimate
    assert predicted == {
        "source": "predicted",
        "seconds": estimate.seconds,
        "bound_seconds": estimate.bound_seconds,
    }
    assert measured == {"source": "measured", "seconds": seen.measurement(PLAN).seconds}


@pytest.mark.parametrize("found", [PREDICTED, MEASURED], ids=["predicted", "measured"])
def test_the_threads_are_the_engines(found):
    threads = names(found, "thread_name")
    assert sorted(threads.values()) == ["compute", "copy"]
    assert {event["tid"] for event in of_kind(found, "X")} <= set(threads)


def test_stages_are_as_long_as_the_plan_says_in_microseconds():
    by_name = {
        event["name"]: event["dur"] for event in spans(PREDICTED, "compute") if ": " not in event["name"]
    }
    assert by_name == pytest.approx({s.name: 1e6 * s.seconds for s in PLAN.estimate.stages}, abs=1e-3)


def test_memory_is_counted_by_owner_and_in_all():
    levels = seen.timeline(PROFILE, PLAN).memory
    owners = of_kind(PREDICTED, "C", "GPU memory by owner")
    totals = of_kind(PREDICTED, "C", "GPU memory (bytes)")
    assert [event["args"] for event in owners] == [level.owners for level in levels]
    assert [event["args"]["all"] for event in totals] == [sum(level.owners.values()) for level in levels]


def test_measured_stages_follow_one_another_with_what_they_waited():
    stages = seen.measurement(PLAN).stages
    found = spans(MEASURED, "compute")
    assert [event["name"] for event in found] == [stage.name for stage in stages]
    for before, after in itertools.pairwise(found):
        assert before["ts"] + before["dur"] == pytest.approx(after["ts"])
    assert [event["args"] for event in found] == [
        {"exposed_copy_seconds": stage.exposed_copy_seconds, "moved_bytes": stage.moved_bytes}
        for stage in stages
    ]
    assert [event["args"]["stage"] for event in of_kind(MEASURED, "C")] == [s.peak_bytes for s in stages]


@settings(max_examples=20)
@given(profiles())
def test_spans_of_a_thread_lie_beside_or_inside_one_another(profile):
    """Viewers draw what lies inside as its child, and cannot draw what overlaps by halves."""
    plan = api.plan(profile, 24)
    timeline = api.timeline(profile, plan)
    found = events(timeline_trace(timeline, plan=plan))
    assert len(of_kind(found, "X")) == len(timeline.spans) + len(plan.stages)
    for thread in ("compute", "copy"):
        open_until: list[float] = []
        for event in sorted(spans(found, thread), key=lambda event: (event["ts"], -event["dur"])):
            end = round(event["ts"] + event["dur"], 3)
            while open_until and open_until[-1] <= event["ts"]:
                open_until.pop()
            assert not open_until or end <= open_until[-1]
            open_until.append(end)
