"""Time on the null card: what holds the host up, what happens side by side, what waits for what."""

from collections.abc import Callable, Iterator

import pytest
import torch

from tests.nullcuda.card import counters, host_seconds, reset
from tests.nullcuda.clock import EFFICIENCIES, Cost

pytestmark = pytest.mark.without_values
COPY_BYTES = 120_000_000
COPY_SECONDS = COPY_BYTES / 1.2e10
PAGEABLE_SECONDS = 3 * COPY_SECONDS
EDGE, NUM_PRODUCTS = 4096, 8
PRODUCT_SECONDS = 2 * EDGE**3 / (4e13 * EFFICIENCIES["matrix product"])
SLACK_SECONDS = 1e-4
"""Calls and launches take the host microseconds."""


@pytest.fixture
def there() -> torch.Tensor:
    return torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")


@pytest.fixture
def pinned() -> torch.Tensor:
    return torch.empty(COPY_BYTES, dtype=torch.uint8, pin_memory=True)


@pytest.fixture
def matrix() -> Iterator[torch.Tensor]:
    matrix = torch.empty(EDGE, EDGE, dtype=torch.bfloat16, device="cuda")
    matrix @ matrix  # takes the library's workspace
    with Cost():
        yield matrix


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Until the host is free, and until all is done."""
    torch.cuda.synchronize()
    began = host_seconds()
    work()
    free = host_seconds() - began
    torch.cuda.synchronize()
    return free, host_seconds() - began


def about(expected_seconds: float) -> object:
    return pytest.approx(expected_seconds, abs=SLACK_SECONDS)


def on_a_side_stream(work: Callable[[], object]) -> torch.cuda.Stream:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        work()
    return side


def products(matrix: torch.Tensor) -> None:
    for _ in range(NUM_PRODUCTS):
        matrix @ matrix


def test_a_pinned_copy_leaves_the_host_free(there: torch.Tensor, pinned: torch.Tensor) -> None:
    assert seconds(lambda: there.copy_(pinned, non_blocking=True)) == (about(0), about(COPY_SECONDS))


def test_a_blocking_copy_holds_the_host_up(there: torch.Tensor, pinned: torch.Tensor) -> None:
    assert seconds(lambda: there.copy_(pinned)) == (about(COPY_SECONDS), about(COPY_SECONDS))


def test_a_pageable_copy_holds_the_host_up_even_if_it_should_not(there: torch.Tensor) -> None:
    pageable = torch.empty(COPY_BYTES, dtype=torch.uint8)
    assert seconds(lambda: there.copy_(pageable, non_blocking=True)) == (about(PAGEABLE_SECONDS),) * 2
    assert seconds(lambda: pageable.copy_(there, non_blocking=True)) == (about(PAGEABLE_SECONDS),) * 2


def test_a_small_pageable_copy_to_the_card_is_taken_along(there: torch.Tensor) -> None:
    small = torch.empty(60_000, dtype=torch.uint8)
    on_a_side_stream(lambda: None)
    busy = torch.empty_like(there)
    pinned = torch.empty(COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    free, done = seconds(
        lambda: (busy.copy_(pinned, non_blocking=True), there[:60_000].copy_(small, non_blocking=True))
    )
    assert (free, done) == (about(0), about(COPY_SECONDS))


def test_two_copies_to_the_card_share_an_engine(there: torch.Tensor, pinned: torch.Tensor) -> None:
    other = torch.empty_like(there)

    def work() -> None:
        on_a_side_stream(lambda: there.copy_(pinned, non_blocking=True))
        on_a_side_stream(lambda: other.copy_(pinned, non_blocking=True))

    assert seconds(work) == (about(0), about(2 * COPY_SECONDS))


def test_one_copy_each_way_happen_side_by_side(there: torch.Tensor, pinned: torch.Tensor) -> None:
    other = torch.empty_like(there)

    def work() -> None:
        on_a_side_stream(lambda: there.copy_(pinned, non_blocking=True))
        on_a_side_stream(lambda: pinned.copy_(other, non_blocking=True))

    assert seconds(work) == (about(0), about(COPY_SECONDS))


def test_products_take_their_arithmetic(matrix: torch.Tensor) -> None:
    assert seconds(lambda: products(matrix)) == (about(0), about(NUM_PRODUCTS * PRODUCT_SECONDS))


def test_products_happen_beside_a_copy(matrix: torch.Tensor, there: torch.Tensor, pinned: torch.Tensor) -> None:
    def work() -> None:
        on_a_side_stream(lambda: there.copy_(pinned, non_blocking=True))
        products(matrix)

    longer = max(COPY_SECONDS, NUM_PRODUCTS * PRODUCT_SECONDS)
    assert seconds(work) == (about(0), about(longer))


def test_products_that_wait_for_a_copy_come_after_it(
    matrix: torch.Tensor, there: torch.Tensor, pinned: torch.Tensor
) -> None:
    def work() -> None:
        side = on_a_side_stream(lambda: there.copy_(pinned, non_blocking=True))
        torch.cuda.current_stream().wait_stream(side)
        products(matrix)

    assert seconds(work) == (about(0), about(COPY_SECONDS + NUM_PRODUCTS * PRODUCT_SECONDS))


def test_what_need_not_wait_goes_before_what_waits(
    matrix: torch.Tensor, there: torch.Tensor, pinned: torch.Tensor
) -> None:
    """A kernel of a stream that waits for a copy holds up none of another stream."""

    def work() -> None:
        on_a_side_stream(lambda: (there.copy_(pinned, non_blocking=True), there.add_(1)))
        products(matrix)

    without_gap = NUM_PRODUCTS * PRODUCT_SECONDS + COPY_BYTES / 2.5e11
    assert seconds(work)[1] == pytest.approx(without_gap, abs=PRODUCT_SECONDS)


def test_many_small_launches_take_the_hosts_time(matrix: torch.Tensor) -> None:
    """A launch takes the host 6 us, the operation 2 us more, the card less."""
    small = torch.empty(16, dtype=torch.bfloat16, device="cuda")
    free, done = seconds(lambda: [small.add_(1) for _ in range(1000)])
    assert free == about(1000 * 8e-6)
    assert done == about(free)


def test_an_event_is_done_when_its_time_has_come(matrix: torch.Tensor) -> None:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    matrix @ matrix
    end.record()
    assert not end.query()
    assert not torch.cuda.current_stream().query()
    end.synchronize()
    assert end.query()
    assert torch.cuda.current_stream().query()
    assert start.elapsed_time(end) / 1e3 == about(PRODUCT_SECONDS)


def test_a_free_waits_for_the_card(there: torch.Tensor, pinned: torch.Tensor) -> None:
    other = torch.empty_like(there)
    torch.cuda.synchronize()
    there.copy_(pinned, non_blocking=True)
    before = host_seconds()
    del other
    reset()
    torch.cuda.empty_cache()
    assert counters().num_frees > 0
    assert host_seconds() - before == about(COPY_SECONDS)


def test_the_memory_of_a_stream_that_is_not_done_is_not_given_to_another(pinned: torch.Tensor) -> None:
    held = [torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")]
    address = held[0].data_ptr()
    side = on_a_side_stream(lambda: held[0].copy_(pinned, non_blocking=True))
    held.pop().record_stream(side)
    assert torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda").data_ptr() != address
    torch.cuda.synchronize()


def test_what_is_counted(there: torch.Tensor, pinned: torch.Tensor) -> None:
    torch.cuda.synchronize()
    reset()
    there.copy_(pinned, non_blocking=True)
    pinned.copy_(there, non_blocking=True)
    there.clone()
    torch.cuda.synchronize()
    found = counters()
    assert (found.to_card_bytes, found.from_card_bytes, found.on_card_bytes) == (COPY_BYTES,) * 3
    assert (found.num_to_card_copies, found.num_from_card_copies, found.num_on_card_copies) == (1, 1, 1)
    assert (found.num_pageable_copies, found.pageable_bytes) == (0, 0)
    assert found.num_host_waits == 1
    assert found.host_wait_seconds == pytest.approx(2 * COPY_SECONDS + 2 * COPY_BYTES / 2.5e11, rel=0.01)
    assert found.to_card_seconds == about(COPY_SECONDS)
    assert found.from_card_seconds == about(COPY_SECONDS)
    assert found.pinned_peak_bytes >= found.pinned_bytes >= COPY_BYTES
    assert found.used_peak_bytes >= 2 * COPY_BYTES


def test_page_locking_takes_the_host_time_and_is_counted() -> None:
    reset()
    before, pinned_bytes = host_seconds(), counters().pinned_bytes
    locked = torch.empty(3 << 30, dtype=torch.uint8, pin_memory=True)
    locked_bytes = counters().pinned_bytes - pinned_bytes  # PyTorch rounds up
    assert locked_bytes >= locked.nbytes
    assert host_seconds() - before == about(1e-4 + locked_bytes / 4e9)
    assert (counters().num_page_locks, counters().pinned_total_bytes) == (1, locked_bytes)
