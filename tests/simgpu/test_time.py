import math
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tests.simgpu.fixtures import load_or_fail, restore

SLOW = {
    "flops_per_second": 1e12,
    "memory_bytes_per_second": 1e12,
    "launch_seconds": 1e-6,
    "pinned_copy_bytes_per_second": 1e9,
    "pageable_copy_bytes_per_second": 5e8,
    "pinned_readback_bytes_per_second": 2e9,
    "readback_bytes_per_second": 4e8,
    "copy_latency_seconds": 0.0,
}


@pytest.fixture
def slow(sim: ModuleType) -> ModuleType:
    sim.set_rates(**SLOW)
    return sim


def test_a_pinned_copy_leaves_the_host_alone(slow: ModuleType) -> None:
    host, on_sim = torch.ones(100, 100).pin_memory(), torch.empty(100, 100, device="sim")
    on_sim.copy_(host, non_blocking=True)
    assert slow.virtual_seconds() == 0
    slow.synchronize()
    assert slow.virtual_seconds() == 40e-6
    on_sim.copy_(host)
    assert slow.virtual_seconds() == 80e-6


def test_a_pageable_copy_holds_the_host(slow: ModuleType) -> None:
    on_sim = torch.empty(100, 100, device="sim")
    on_sim.copy_(torch.ones(100, 100), non_blocking=True)
    assert slow.virtual_seconds() == 80e-6
    on_sim.cpu()
    assert slow.virtual_seconds() == 180e-6
    assert slow.counters().host_wait_seconds == 180e-6


def test_an_operation_takes_its_flops_or_its_bytes(slow: ModuleType) -> None:
    x = torch.ones(100, 100).to("sim")
    slow.reset()
    x @ x
    x + x
    assert [(row.name, row.num_bytes, row.flops) for row in slow.timeline()] == [
        ("aten::mm", 120000, 2e6),
        ("aten::add", 120000, 0),
    ]
    assert [row.end_seconds for row in slow.timeline()] == [3e-6, 4.12e-6]
    assert slow.virtual_seconds() == 0  # nobody waited
    assert slow.counters().compute_seconds == 4.12e-6


def test_bytes_of_expanded_gathered_and_rewritten_tensors(slow: ModuleType) -> None:
    table, row = torch.ones(1000, 8, device="sim"), torch.ones(8, device="sim")
    index = torch.tensor([1, 2], device="sim")
    slow.reset()
    row.expand(1000, 8).sum()
    torch.nn.functional.embedding(index, table)
    table[index]
    row.add_(row)
    assert [row.num_bytes for row in slow.timeline()] == [8 * 4 + 4, 2 * (2 * 8 * 4), 2 * (2 * 8 * 4), 3 * 8 * 4]


def test_copies_and_compute_overlap(slow: ModuleType) -> None:
    x, host, side = torch.ones(100, 100).to("sim"), torch.ones(100, 100).pin_memory(), slow.Stream()
    slow.reset()
    with side:
        arrived = host.to("sim", non_blocking=True)
        ready = side.record_event()
    for _ in range(10):
        x @ x
    slow.current_stream().wait_event(ready)
    x @ arrived
    slow.synchronize()
    assert slow.virtual_seconds() == 43e-6  # 40 of the copy, in which the ten were done, and 3


def test_one_direction_is_one_engine(slow: ModuleType) -> None:
    host, back = torch.ones(100, 100).pin_memory(), torch.empty(100, 100, pin_memory=True)
    on_sim = host.to("sim")
    slow.reset()
    streams = [slow.Stream() for _ in range(3)]
    with streams[0]:
        host.to("sim", non_blocking=True)
    with streams[1]:
        host.to("sim", non_blocking=True)
    with streams[2]:
        back.copy_(on_sim, non_blocking=True)
    slow.synchronize()
    assert [(row.start_seconds, row.end_seconds) for row in slow.timeline()] == [(0, 40e-6), (40e-6, 80e-6), (0, 20e-6)]


def test_events_tell_the_time(slow: ModuleType) -> None:
    host, side = torch.ones(100, 100).pin_memory(), slow.Stream()
    before, after = slow.Event(enable_timing=True), slow.Event(enable_timing=True)
    with side:
        before.record()
        host.to("sim", non_blocking=True)
        after.record()
    assert not after.query()
    after.synchronize()
    assert after.query()
    assert before.elapsed_time(after) == 0.04  # milliseconds


def test_polling_ends(slow: ModuleType) -> None:
    done = slow.Event()
    torch.ones(100, 100).pin_memory().to("sim", non_blocking=True)
    done.record()
    num_queries = 0
    while not done.query():
        num_queries += 1
    assert num_queries == 39  # a microsecond each
    assert slow.virtual_seconds() == pytest.approx(40e-6)


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: torch.equal(x, x),
    ],
    ids=["item", "nonzero", "mask", "masked_select", "equal"],
)
def test_what_the_host_needs_to_know_makes_it_wait(slow: ModuleType, ask: Any) -> None:
    x = torch.ones(100, 100, device="sim")
    slow.reset()
    ask(x)
    assert slow.virtual_seconds() == slow.counters().host_wait_seconds > 0
    assert slow.counters().num_blocking_copies == 1


def test_the_host_pays_for_what_it_enqueues(slow: ModuleType) -> None:
    slow.set_rates(enqueue_seconds=2e-6)
    x = torch.ones(2, device="sim")
    slow.reset()
    for _ in range(3):
        x + x
    done = slow.current_stream().record_event()
    slow.current_stream().wait_event(done)
    assert slow.virtual_seconds() == 10e-6


def test_explicit_synchronisations_are_counted(slow: ModuleType) -> None:
    event = slow.current_stream().record_event()
    slow.synchronize()
    slow.current_stream().synchronize()
    event.synchronize()
    assert slow.counters().num_synchronizes == 3
    assert slow.counters(1).num_synchronizes == 0


def test_reset_starts_at_zero_and_repeats_to_the_last_digit(slow: ModuleType) -> None:
    def run() -> tuple[float, object, object]:
        slow.reset()
        x = torch.ones(37, 41).pin_memory().to("sim", non_blocking=True)
        for _ in range(7):
            x = torch.relu(x @ x.T @ x) / 3
        x.sum().item()
        return slow.virtual_seconds(), slow.counters(), tuple(slow.timeline())

    first = run()
    assert first[0] > 0
    assert [run() for _ in range(20)] == [first] * 20


def test_flops_agree_with_pytorchs_counter(sim: ModuleType) -> None:
    def work(device: str) -> None:
        x = torch.ones(2, 6, 10, 10, device=device)
        torch.nn.functional.conv2d(x, torch.ones(4, 3, 3, 3, device=device), groups=2, stride=2)
        torch.nn.functional.conv_transpose2d(x, torch.ones(6, 5, 3, 3, device=device), stride=2)
        torch.nn.functional.linear(x, torch.ones(7, 10, device=device), torch.ones(7, device=device))
        torch.baddbmm(x[0, :, :5, :5], x[0, :, :5], x[0, :, :, :5])

    with FlopCounterMode(display=False) as counter:
        work("cpu")
    sim.reset()
    work("sim")
    assert sim.counters().flops == counter.get_total_flops()


def test_flops_of_attention(sim: ModuleType) -> None:
    query, key, value = (torch.ones(2, 3, n, 8, device="sim") for n in (5, 7, 7))
    sim.reset()
    torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert sim.counters().flops == 2 * 2 * 3 * 5 * 7 * (8 + 8)


def test_bad_rates_are_refused_and_change_nothing(sim: ModuleType) -> None:
    before = sim.rates()
    with pytest.raises(ValueError, match="flops_per_second must be above 0; got 0"):
        sim.set_rates(flops_per_second=0)
    with pytest.raises(TypeError, match="flops"):
        sim.set_rates(flops=1e12)
    assert sim.rates() == before == replace(before)


# ---------------------------------------------------------------------------------------------------
# The same rules, written down a second time: random programs on three streams end at the same picosecond.

STEP = st.tuples(
    st.sampled_from(["multiply", "copy in", "copy out", "record", "wait", "synchronize"]),
    st.integers(0, 2),  # stream
    st.integers(1, 40),  # rows of the matrix; which event
)


def whole_picoseconds(seconds: float) -> int:
    return math.floor(seconds * 1e12 + 0.5)


def expected_seconds(program: list[tuple[str, int, int]]) -> float:
    """The host's clock after the program and a synchronisation of the device."""
    host, streams, engines, events = 0, [0, 0, 0], {"multiply": 0, "copy in": 0, "copy out": 0}, {}
    for verb, stream, n in program:
        num_bytes = n * n * 4
        if verb == "record":
            streams[stream] = max(streams[stream], host)
            events[n % 4] = streams[stream]
        elif verb == "wait":
            streams[stream] = max(streams[stream], events.get(n % 4, 0))
        elif verb == "synchronize":
            host = max(host, streams[stream])
        else:
            seconds = {
                "multiply": 1e-6 + max(2.0 * n**3 / 1e12, 3 * num_bytes / 1e12),
                "copy in": num_bytes / 1e9,
                "copy out": num_bytes / 2e9,
            }[verb]
            start = max(streams[stream], host, engines[verb])
            streams[stream] = engines[verb] = start + whole_picoseconds(seconds)
    return max(host, *streams) / 1e12


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=30))
def test_virtual_time_follows_the_rules(program: list[tuple[str, int, int]]) -> None:
    sim = load_or_fail()
    restore(sim)
    sim.set_rates(**SLOW)
    streams = [sim.current_stream(), sim.Stream(), sim.Stream()]
    sources = [torch.ones(40, 40, device="sim") for _ in streams]
    sinks = [torch.empty(40, 40, device="sim") for _ in streams]
    arriving = [torch.empty(1600, device="sim") for _ in streams]
    leaving = [torch.empty(1600, pin_memory=True) for _ in streams]
    host = torch.ones(1600).pin_memory()
    events: dict[int, torch.Event] = {}
    sim.reset()
    for verb, stream, n in program:
        with streams[stream]:
            if verb == "multiply":
                torch.mm(
                    *[sources[stream].view(-1)[: n * n].view(n, n)] * 2, out=sinks[stream].view(-1)[: n * n].view(n, n)
                )
            elif verb == "copy in":
                arriving[stream][: n * n].copy_(host[: n * n], non_blocking=True)
            elif verb == "copy out":
                leaving[stream][: n * n].copy_(sources[stream].view(-1)[: n * n], non_blocking=True)
            elif verb == "record":
                events[n % 4] = streams[stream].record_event()
            elif verb == "wait" and n % 4 in events:
                streams[stream].wait_event(events[n % 4])
            elif verb == "synchronize":
                streams[stream].synchronize()
    sim.synchronize()
    assert sim.virtual_seconds() == expected_seconds(program)
    restore(sim)
