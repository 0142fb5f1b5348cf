"""Page-locked buffers: whole pages, given back, and never more than a share of the host's memory."""

import gc
import mmap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import psutil
import pytest
import torch

from tests import tiny_pipelines
from tests.offload.tuned_pipelines import tuned, whole
from vramtune.host_memory import LOCKED_FRACTION
from vramtune.offload import pinned
from vramtune.offload.pinned import pinned_buffer

CUDA = torch.device("cuda", 1)


class CudaRuntime:
    """The functions of CUDA's runtime that are called."""

    def __init__(self, status: int = 0) -> None:
        self.registered: dict[int, int] = {}
        self.current: torch.device | None = None
        self._status = status

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
        assert self.current == CUDA
        if self._status == 0:
            self.registered[address] = num_bytes
        return self._status

    def cudaHostUnregister(self, address: int) -> int:
        del self.registered[address]
        return 0

    def cudaGetErrorString(self, status: int) -> str:
        return {2: "out of memory"}[status]

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        self.current = device
        yield
        self.current = None


def use(runtime: CudaRuntime, monkeypatch: pytest.MonkeyPatch) -> CudaRuntime:
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "device", runtime.device)
    return runtime


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> CudaRuntime:
    return use(CudaRuntime(), monkeypatch)


def host_of(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=num_bytes))


@pytest.mark.parametrize("num_bytes", [1, mmap.PAGESIZE - 1, mmap.PAGESIZE, 3 * mmap.PAGESIZE + 5])
def test_cuda_locks_whole_pages_and_unlocks_them_with_the_last_view(runtime: CudaRuntime, num_bytes: int) -> None:
    flat = pinned_buffer(num_bytes, CUDA)
    assert flat.numel() == num_bytes
    ((address, locked_bytes),) = runtime.registered.items()
    assert address == flat.data_ptr()
    assert address % mmap.PAGESIZE == locked_bytes % mmap.PAGESIZE == 0
    assert 0 <= locked_bytes - num_bytes < mmap.PAGESIZE
    view = flat[:1]
    del flat
    gc.collect()
    assert runtime.registered
    del view
    gc.collect()
    assert not runtime.registered


def test_memory_that_the_system_refuses_to_lock_is_none_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    use(CudaRuntime(status=2), monkeypatch)
    asked = []

    def zeros(size: int, *, device: torch.device) -> torch.Tensor:
        asked.append(device)
        raise RuntimeError("CUDA error: out of memory")  # what CUDA still remembers of the call before

    monkeypatch.setattr(pinned.torch, "zeros", zeros)  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match=r"cudaHostRegister: out of memory\).*more slowly"):
        assert pinned_buffer(1000, CUDA) is None
    assert asked == [CUDA]


def test_no_more_than_a_share_of_the_host_memory_is_locked(
    runtime: CudaRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    host_of(monkeypatch, 10 * mmap.PAGESIZE)
    assert LOCKED_FRACTION == 0.8
    first = pinned_buffer(5 * mmap.PAGESIZE, CUDA)
    with pytest.warns(UserWarning, match="80% of RAM"):
        pinned_buffer(4 * mmap.PAGESIZE, CUDA)
    assert len(runtime.registered) == 1
    del first
    pinned_buffer(4 * mmap.PAGESIZE, CUDA)


def test_a_pipeline_runs_from_ordinary_memory_and_says_so_once(
    sim: ModuleType, no_garbage: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = tiny_pipelines.run(whole("flux"), "flux").cpu()
    host_of(monkeypatch, 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        before_bytes = sim.pinned_memory_allocated()
        with tuned("flux", 0.4) as (pipe, _):
            assert torch.equal(tiny_pipelines.run(pipe, "flux").cpu(), want)
            assert sim.pinned_memory_allocated() == before_bytes
    assert len([w for w in caught if "Page-locked" in str(w.message)]) == 1
