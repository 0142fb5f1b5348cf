import json

import pytest
from hypothesis import given, settings

from tests.profiles import profiles
from tests.reports import examples, plan_results
from vramtune.reports.trace import timeline_trace
from vramtune.tuner import simulate
from vramtune.tuner.search import choose_plan
from vramtune.units import GIB

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


TIMELINE = plan_results.timeline(PROFILE, PLAN)
PREDICTED = events(timeline_trace(TIMELINE))


def test_process_is_called_predicted():
    assert names(PREDICTED, "process_name") == {
        0: "StableDiffusionXLPipeline in 6.00 GiB of GeForce RTX 4060 (predicted)"
    }


def test_file_says_that_it_was_predicted_and_names_the_bound():
    assert json.loads(timeline_trace(TIMELINE))["otherData"] == {
        "source": "predicted",
        "seconds": PLAN.estimate.seconds,
        "bound_seconds": PLAN.estimate.bound_seconds,
    }


def test_threads_are_the_engines():
    threads = names(PREDICTED, "thread_name")
    assert sorted(threads.values()) == ["compute", "copy"]
    assert {event["tid"] for event in of_kind(PREDICTED, "X")} <= set(threads)


def test_stages_are_as_long_as_the_plan_says_in_microseconds():
    by_name = {event["name"]: event["dur"] for event in spans(PREDICTED, "compute") if ": " not in event["name"]}
    assert by_name == pytest.approx({s.name: 1e6 * s.seconds for s in PLAN.estimate.stages}, abs=1e-3)


def test_memory_is_counted_by_owner_and_in_all():
    weights = [event["args"] for event in of_kind(PREDICTED, "C", "GPU memory of weights")]
    others = [event["args"] for event in of_kind(PREDICTED, "C", "GPU memory of the rest")]
    totals = [event["args"]["all"] for event in of_kind(PREDICTED, "C", "GPU memory (bytes)")]
    assert weights == [level.component_bytes for level in TIMELINE.memory]
    assert totals == [level.held_bytes for level in TIMELINE.memory]
    assert totals == [sum(w.values()) + sum(o.values()) for w, o in zip(weights, others, strict=True)]


def test_spans_of_groups_say_their_iteration_and_whether_the_group_is_kept():
    groups = [event["args"] for event in spans(PREDICTED, "compute") if ": " in event["name"]]
    assert max(args["iteration"] for args in groups) == 49
    assert {args["is_kept"] for args in groups} == {True, False}


@settings(max_examples=20)
@given(profiles())
def test_spans_of_a_thread_lie_beside_or_inside_one_another(profile):
    """Viewers draw what lies inside as its child, and cannot draw what overlaps by halves."""
    plan = choose_plan(profile, 24 * GIB)
    timeline = simulate.timeline(profile, plan)
    found = events(timeline_trace(timeline))
    assert len(of_kind(found, "X")) == len(timeline.spans) + len(plan.stages)
    for thread in ("compute", "copy"):
        open_until: list[float] = []
        for event in sorted(spans(found, thread), key=lambda event: (event["ts"], -event["dur"])):
            end = round(event["ts"] + event["dur"], 3)
            while open_until and open_until[-1] <= event["ts"]:
                open_until.pop()
            assert not open_until or end <= open_until[-1]
            open_until.append(end)
