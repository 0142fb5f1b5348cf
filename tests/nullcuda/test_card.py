"""The card as PyTorch sees it: memory, errors, streams, page-locked memory."""

import gc

import pynvml
import pytest
import torch

from tests.nullcuda.card import card, counters, reset
from vramtune.machine.live import live_device
from vramtune.offload import pinned
from vramtune.units import MIB


def new(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, device="cuda")


def test_the_allocator_takes_whole_segments_of_the_card() -> None:
    before, reserved_bytes = counters().used_bytes, torch.cuda.memory_reserved()
    held = new(30 * MIB + 1)
    assert torch.cuda.memory_reserved() - reserved_bytes == 32 * MIB
    assert counters().used_bytes - before == 32 * MIB
    del held
    torch.cuda.empty_cache()
    assert counters().used_bytes == before


def test_more_than_the_card_has_is_pytorchs_own_error() -> None:
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    assert total_bytes == card().total_bytes
    with pytest.raises(torch.OutOfMemoryError, match=r"CUDA out of memory\. Tried to allocate .* GPU 0 has a total"):
        new(free_bytes + 1)
    assert torch.cuda.memory_stats()["num_ooms"] > 0


def test_what_another_process_holds_is_not_free_and_nvml_names_it() -> None:
    free_bytes, _ = torch.cuda.mem_get_info()
    card().others_bytes = 1024 * MIB
    assert torch.cuda.mem_get_info()[0] == free_bytes - 1024 * MIB
    with pytest.raises(torch.OutOfMemoryError):
        new(free_bytes - 512 * MIB)
    pynvml.nvmlInit()
    processes = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(0))
    assert sorted(process.usedGpuMemory for process in processes) == sorted([counters().used_bytes, 1024 * MIB])


def test_copies_are_counted_by_direction_and_kind_of_memory() -> None:
    pageable = torch.arange(1000, dtype=torch.float32)
    pinned = pageable.pin_memory()
    reset()
    there = pinned.to("cuda", non_blocking=True)
    assert (counters().to_card_bytes, counters().pageable_bytes) == (4000, 0)
    there.copy_(pageable)
    assert (counters().to_card_bytes, counters().pageable_bytes) == (8000, 4000)
    assert torch.equal(there.cpu(), pageable)
    assert counters().from_card_bytes >= 4000


def test_a_pageable_copy_is_slower_than_a_pinned_one() -> None:
    device = live_device(torch.device("cuda"))
    assert device.pageable_copy_bytes_per_second == pytest.approx(device.pinned_copy_bytes_per_second / 3, rel=0.01)


def test_page_locking_beyond_the_limit_is_refused_and_what_is_let_go_counts_no_more() -> None:
    runtime, memory = torch.cuda.cudart(), torch.empty(3 * MIB, dtype=torch.uint8)
    address = -(-memory.data_ptr() // 4096) * 4096
    before = counters().pinned_bytes
    card().pinned_limit_bytes = before + MIB
    assert int(runtime.cudaHostRegister(address, 2 * MIB, 0)) == 2  # out of memory
    assert int(runtime.cudaHostRegister(address, MIB, 0)) == 0
    assert counters().pinned_bytes == before + MIB
    assert int(runtime.cudaHostRegister(address, MIB, 0)) == 712  # locked already
    assert int(runtime.cudaHostUnregister(address)) == 0
    assert int(runtime.cudaHostUnregister(address)) == 713  # not locked
    assert counters().pinned_bytes == before
    pinned._clear_last_error(torch.device("cuda"))


def test_a_stream_that_waits_for_another_is_not_ahead_of_it() -> None:
    side, start, end = torch.cuda.Stream(), *(torch.cuda.Event(enable_timing=True) for _ in range(2))
    there, pinned = new(12 * MIB), torch.empty(12 * MIB, dtype=torch.uint8, pin_memory=True)
    torch.cuda.synchronize()
    start.record()
    with torch.cuda.stream(side):
        there.copy_(pinned, non_blocking=True)
    torch.cuda.current_stream().wait_stream(side)
    end.record()
    end.synchronize()
    assert start.elapsed_time(end) == pytest.approx(12 * MIB / 1.2e10 * 1e3, rel=0.05)


def test_memory_of_another_stream_is_kept_until_that_stream_is_done() -> None:
    side, held = torch.cuda.Stream(), new(30 * MIB)
    held.record_stream(side)
    del held
    gc.collect()
    torch.cuda.empty_cache()
    assert new(30 * MIB).numel() == 30 * MIB


def test_the_card_is_one_of_the_gpus_that_vramtune_knows() -> None:
    device = live_device(torch.device("cuda"))
    assert device.context_bytes == card().context_bytes
    assert device.total_bytes == card().total_bytes
