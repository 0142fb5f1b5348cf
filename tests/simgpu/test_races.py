"""Planted faults: each must be caught, and each mended version must pass."""

from types import ModuleType

import pytest
import torch

pytestmark = pytest.mark.usefixtures("no_garbage")


def matrix(value: float) -> torch.Tensor:
    return torch.full((64, 64), float(value))


def stream_blocks(sim: ModuleType, *, num_blocks: int = 6, forget: str = "") -> list[float]:
    """Matrices copied one after the other through two slots on a copy stream, each multiplied by ones."""
    copy_stream, compute_stream = sim.Stream(), sim.current_stream()
    hosts = [matrix(i).pin_memory() for i in range(num_blocks)]
    slots = [torch.empty(64, 64, device="sim") for _ in range(2)]
    ones, results, freed = matrix(1).to("sim"), [], [None, None]
    for i, host in enumerate(hosts):
        slot = slots[i % 2]
        if freed[i % 2] is not None and forget != "wait until the slot is free":
            copy_stream.wait_event(freed[i % 2])
        with copy_stream:
            slot.copy_(host, non_blocking=True)
            ready = copy_stream.record_event()
        if forget != "wait until the copy is there":
            compute_stream.wait_event(ready)
        results.append(ones @ slot)
        freed[i % 2] = compute_stream.record_event()
    sim.synchronize()
    return [result[0, 0].item() for result in results]


def test_a_correct_two_stream_pipeline_passes(sim: ModuleType) -> None:
    assert stream_blocks(sim) == [64.0 * i for i in range(6)]


def test_a_missing_wait_for_the_copy(sim: ModuleType) -> None:
    with pytest.raises(
        RuntimeError,
        match=r"sim race: read by aten::mm on stream 0 of sim:0 .*is not ordered after write by copy to device "
        r"on stream \d+ of sim:0",
    ):
        stream_blocks(sim, forget="wait until the copy is there")


def test_a_missing_wait_before_a_slot_is_overwritten(sim: ModuleType) -> None:
    with pytest.raises(
        RuntimeError,
        match=r"sim race: write by copy to device on stream \d+ of sim:0 .*is not ordered after read by aten::mm "
        r"on stream 0 of sim:0",
    ):
        stream_blocks(sim, forget="wait until the slot is free")


def test_a_race_is_one_even_where_the_timing_is_lucky(sim: ModuleType) -> None:
    copy_stream = sim.Stream()
    host, slot = matrix(1).pin_memory(), torch.zeros(64, 64, device="sim")
    sim.synchronize()
    with copy_stream:
        slot.copy_(host, non_blocking=True)
    ones = matrix(1).to("sim")
    for _ in range(50):  # long after the copy has ended
        ones = ones * 1
    with pytest.raises(RuntimeError, match="sim race"):
        ones @ slot


def test_a_race_names_the_modules(sim: ModuleType) -> None:
    layer = torch.nn.Linear(64, 64, bias=False).to("sim")
    x = matrix(1).to("sim")
    with torch.no_grad(), sim.labelled(net=layer):
        layer(x)
        with sim.Stream(), pytest.raises(RuntimeError, match=r"after read by aten::mm \[net\] on stream 0"):
            layer.weight.zero_()


def use_on_side_stream(sim: ModuleType) -> tuple[torch.Tensor, torch.Stream, torch.Tensor]:
    """A buffer of the default stream that a kernel on another stream still reads."""
    buffer, side = matrix(1).to("sim"), sim.Stream()
    side.wait_stream(sim.current_stream())
    with side:
        result = buffer @ buffer
    return buffer, side, result


def test_a_buffer_freed_while_a_kernel_reads_it(sim: ModuleType) -> None:
    buffer, _, _result = use_on_side_stream(sim)
    del buffer
    with pytest.raises(RuntimeError, match=r"may be reused by this allocation while the read by aten::mm on stream"):
        torch.empty(64, 64, device="sim")


def test_a_buffer_freed_while_a_copy_fills_it(sim: ModuleType) -> None:
    buffer, host, side = torch.empty(64, 64, device="sim"), matrix(1).pin_memory(), sim.Stream()
    side.wait_stream(sim.current_stream())
    with side:
        buffer.copy_(host, non_blocking=True)
    del buffer
    with pytest.raises(RuntimeError, match=r"may be reused by this allocation while the write by copy to device"):
        torch.empty(64, 64, device="sim")


@pytest.mark.parametrize("mend", ["record_stream", "wait_stream", "synchronize"])
def test_a_buffer_freed_in_order(sim: ModuleType, mend: str) -> None:
    buffer, side, _result = use_on_side_stream(sim)
    if mend == "record_stream":
        buffer.record_stream(side)
    elif mend == "wait_stream":
        sim.current_stream().wait_stream(side)
    else:
        side.synchronize()
    del buffer
    assert torch.empty(64, 64, device="sim").numel() == 64 * 64


def test_record_stream_holds_memory_until_that_stream_has_passed(sim: ModuleType) -> None:
    buffer, side, _result = use_on_side_stream(sim)
    buffer.record_stream(side)
    allocated = sim.memory_allocated()
    del buffer
    assert sim.memory_allocated() == allocated
    side.synchronize()
    held = torch.empty(1, device="sim")
    assert sim.memory_allocated() == allocated - 64 * 64 * 4 + 512
    assert held.numel() == 1


def test_an_allocation_waits_for_recorded_streams_before_it_fails(sim: ModuleType) -> None:
    buffer, side, _result = use_on_side_stream(sim)
    buffer.record_stream(side)
    sim.set_capacity(sim.memory_allocated())
    del buffer
    before = sim.virtual_seconds()
    assert torch.empty(64, 64, device="sim").numel() == 64 * 64
    assert sim.virtual_seconds() > before


def test_new_memory_is_its_streams_until_its_pending_work_is_over(sim: ModuleType) -> None:
    x = matrix(1).to("sim")
    _pending = x @ x
    slot = torch.empty(64, 64, device="sim")  # perhaps where an operand of pending work was
    side = sim.Stream()
    with side, pytest.raises(RuntimeError, match=r"is not ordered after write by the allocation on stream 0"):
        slot.zero_()
    side.wait_stream(sim.current_stream())
    with side:
        slot.zero_()


def test_a_pinned_source_changed_while_the_copy_is_in_flight(sim: ModuleType) -> None:
    host = torch.zeros(64).pin_memory()
    host.to("sim", non_blocking=True)
    host.fill_(1)
    with pytest.raises(RuntimeError, match="the pinned source of copy to device on stream 0 of sim:0 was changed"):
        sim.synchronize()


def test_a_pinned_source_changed_between_two_copies_of_it(sim: ModuleType) -> None:
    host, on_sim = torch.zeros(64).pin_memory(), torch.empty(64, device="sim")
    on_sim.copy_(host, non_blocking=True)
    host.fill_(1)
    with pytest.raises(RuntimeError, match="was changed by the host while the copy was in flight"):
        on_sim.copy_(host, non_blocking=True)
    sim.synchronize()


def test_a_copy_out_read_before_it_has_arrived(sim: ModuleType) -> None:
    x, host = torch.ones(64, device="sim"), torch.zeros(64).pin_memory()
    host.copy_(x, non_blocking=True)
    assert host.isnan().all()
    sim.synchronize()
    assert (host == 1).all()


def test_a_pageable_copy_taken_for_an_asynchronous_one(sim: ModuleType) -> None:
    pageable, pinned = torch.ones(2**20), torch.ones(2**20).pin_memory()
    on_sim = torch.empty(2**20, device="sim")
    sim.synchronize()
    sim.reset()
    on_sim.copy_(pinned, non_blocking=True)
    assert (sim.virtual_seconds(), sim.counters().num_staged_copies) == (0, 0)
    on_sim.copy_(pageable, non_blocking=True)
    seconds = sim.rates().copy_latency_seconds + 2**22 / sim.rates().pageable_copy_bytes_per_second
    assert sim.virtual_seconds() > seconds  # the host stood still
    assert sim.counters().num_staged_copies == 1


def test_a_pageable_copy_orders_nothing(sim: ModuleType) -> None:
    on_sim, side = torch.zeros(64, device="sim"), sim.Stream()
    sim.synchronize()
    with side:
        on_sim.copy_(torch.ones(64), non_blocking=True)
    with pytest.raises(RuntimeError, match="sim race"):
        on_sim + 1


def test_an_event_orders_across_devices(sim: ModuleType) -> None:
    x = torch.ones(512, 512, device="sim:0")
    _y = x @ x
    done = sim.current_stream(0).record_event()
    sim.current_stream(1).wait_event(done)
    assert done.device == torch.device("sim:0")
    other = torch.ones(4, device="sim:1") + 1
    assert other.sum().item() == 8
    first, last = sim.timeline()[0], [row for row in sim.timeline() if row.device == 1][-1]
    assert last.start_seconds >= first.end_seconds
