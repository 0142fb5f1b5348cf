import re
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.simgpu.fixtures import load_or_fail

pytestmark = pytest.mark.usefixtures("no_garbage")


def new(num_bytes: int, device: str = "sim") -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, device=device)


@given(st.lists(st.integers(0, 5000), max_size=20), st.data())
def test_allocated_is_the_sum_of_what_lives_rounded_up(sizes: list[int], data: st.DataObject) -> None:
    sim = load_or_fail()
    before = sim.memory_allocated()
    sim.reset_peak_memory_stats()
    living: list[torch.Tensor] = []
    peak = 0
    for size in sizes:
        living.append(new(size))
        peak = max(peak, sum(-(-t.numel() // 512) * 512 for t in living))
        if data.draw(st.booleans()):
            living.pop(data.draw(st.integers(0, len(living) - 1)))
        assert sim.memory_allocated() - before == sum(-(-t.numel() // 512) * 512 for t in living)
    assert sim.max_memory_allocated() - before == peak


def test_one_byte_over_capacity_is_out_of_memory(sim: ModuleType) -> None:
    sim.set_capacity(sim.memory_allocated() + 1024)
    new(1024)
    with pytest.raises(torch.OutOfMemoryError):
        new(1025)
    sim.set_capacity(sim.memory_allocated() + 1023)
    with pytest.raises(torch.OutOfMemoryError):
        new(1024)
    assert sim.counters().num_out_of_memory == 2


def test_out_of_memory_reads_as_pytorchs(sim: ModuleType) -> None:
    held = new(3 * 2**20)
    allocated = sim.memory_allocated()
    sim.set_capacity(allocated + 512)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        new(2**21)
    pattern = (
        r"sim out of memory\. Tried to allocate 2\.00 MiB\. GPU 0 has a total capacity of (\S+) MiB of which "
        r"512 bytes is free\. Of the allocated memory (\S+) MiB is allocated by PyTorch, and 0 bytes is reserved "
        r"by PyTorch but unallocated\."
    )
    found = re.match(pattern, str(raised.value))
    assert found is not None, str(raised.value)
    assert found[2] == f"{allocated / 2**20:.2f}"
    assert held.numel() == 3 * 2**20


def test_memory_that_is_freed_can_be_had_again(sim: ModuleType) -> None:
    sim.set_capacity(sim.memory_allocated() + 4096)
    held = new(4096)
    with pytest.raises(torch.OutOfMemoryError):
        new(1)
    del held
    assert new(4096).numel() == 4096


def test_an_operations_result_counts_against_the_capacity(sim: ModuleType) -> None:
    x = torch.ones(256, device="sim")
    sim.set_capacity(sim.memory_allocated() + 1024)
    y = x + 1
    with pytest.raises(torch.OutOfMemoryError):
        y + 1
    assert torch.equal(y.cpu(), torch.full((256,), 2.0))


def test_each_device_has_its_own_capacity_and_peak(sim: ModuleType) -> None:
    sim.set_capacity(sim.memory_allocated(1), 1)
    with pytest.raises(torch.OutOfMemoryError, match="GPU 1 has"):
        new(1, "sim:1")
    before = sim.max_memory_allocated(1)
    new(4096, "sim:0")
    assert sim.max_memory_allocated(1) == before
    assert sim.counters(0).num_out_of_memory == 0


def test_free_and_total(sim: ModuleType) -> None:
    sim.set_capacity(2**30)
    held = new(1000)
    assert sim.mem_get_info() == (2**30 - sim.memory_allocated(), 2**30)
    assert sim.get_device_properties(0).total_memory == 2**30
    assert torch.accelerator.memory_reserved() == torch.accelerator.memory_allocated() == sim.memory_allocated()
    assert held.numel() == 1000


def test_a_negative_capacity_is_refused(sim: ModuleType) -> None:
    with pytest.raises(ValueError, match="must not be negative; got -1"):
        sim.set_capacity(-1)


def test_a_storage_resized_to_nothing_gives_its_memory_back(sim: ModuleType) -> None:
    x = torch.ones(100, device="sim")
    allocated = sim.memory_allocated()
    x.untyped_storage().resize_(0)
    assert sim.memory_allocated() == allocated - 512
    x.untyped_storage().resize_(400)
    assert sim.memory_allocated() == allocated
    assert x.fill_(2).sum().item() == 200


def test_attention_is_fused_and_keeps_only_its_logsumexp(sim: ModuleType) -> None:
    x = torch.randn(1, 2, 64, 8, device="sim")
    before = sim.memory_allocated()
    sim.reset_peak_memory_stats()
    y = torch.nn.functional.scaled_dot_product_attention(x, x, x)
    assert sim.max_memory_allocated() - before == 64 * 2 * 8 * 4 + 64 * 2 * 4  # no 64 x 64 scores
    assert sim.memory_allocated() - before == y.nbytes


def test_pinned_memory_is_told_apart_and_counted(sim: ModuleType) -> None:
    before = sim.pinned_memory_allocated()
    pageable = torch.randn(1000)
    pinned = pageable.pin_memory()
    assert torch.equal(pinned, pageable)
    assert [t.is_pinned() for t in (pageable, pinned, pinned[10:], torch.empty(3, pin_memory=True))] == [
        False,
        True,
        True,
        True,
    ]
    assert sim.pinned_memory_allocated() - before == 4000
    del pinned
    assert sim.pinned_memory_allocated() == before
    assert sim.max_pinned_memory_allocated() - before == 4012


def test_copies_are_counted_by_direction_and_kind_of_memory(sim: ModuleType) -> None:
    pinned, pageable = torch.ones(1000).pin_memory(), torch.ones(500)
    sim.reset()
    on_sim = pinned.to("sim", non_blocking=True)
    other = pageable.to("sim")
    other.cpu()
    pinned.copy_(on_sim)
    counted = sim.counters()
    assert (counted.num_copies_in, counted.moved_bytes, counted.pageable_in_bytes) == (2, 6000, 2000)
    assert (counted.num_copies_out, counted.moved_back_bytes, counted.pageable_out_bytes) == (2, 6000, 2000)
    assert counted.num_blocking_copies == 3
