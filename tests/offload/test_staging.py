"""Weights that may not be page-locked: staged, in the time that was planned, with the same bits, within the limit."""

import gc
import io
import threading
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tqdm.auto import tqdm

from tests import tiny_pipelines
from tests.offload.state import state_of
from tests.offload.test_contract import counted, on_cpu, predicted_modes, stock
from tests.offload.tuned_pipelines import planned, profiled, weight_bytes
from tests.simgpu.staging import stage_in_virtual_time
from vramtune.mapped_files import MappedFiles
from vramtune.offload.groups import Group, HeldTensor
from vramtune.offload.install import install
from vramtune.offload.pinned import pinned_buffer
from vramtune.offload.staging import cut, fill
from vramtune.plain_tensors import PlainTensor
from vramtune.schema import Plan, Profile
from vramtune.tuner.search import choose_plan

TOLERANCE = 0.03
LOCKED_FRACTIONS = (1.0, 0.6, 0.4, 0.2)
"""Of the weights, what may be page-locked."""
SLOW = pytest.mark.slow


def on_host(profile: Profile, lockable_bytes: int, *, staging_ratio: float = 1.0) -> Profile:
    """The profile for a host that may lock no more, and stages so many times as fast as the link copies."""
    rate = staging_ratio * profile.device.pinned_copy_bytes_per_second
    device = replace(profile.device, lockable_bytes=lockable_bytes, staging_bytes_per_second=rate)
    return replace(profile, device=device)


def plan_for(profile: Profile, name: str, fraction: float = 0.4) -> Plan:
    """A plan on a device with room for that share of the weights."""
    peak_bytes = choose_plan(profile, profile.device.usable_bytes).estimate.peak_bytes
    return choose_plan(profile, peak_bytes - int((1 - fraction) * weight_bytes(name)))


@pytest.mark.parametrize(
    ("name", "staging_ratio"),
    [
        ("flux", 0.5),
        pytest.param("flux", 2.0, marks=SLOW),
        *(pytest.param(name, ratio, marks=SLOW) for name in ("sdxl", "wan") for ratio in (0.5, 2.0)),
    ],
)
def test_with_less_page_locked_bits_stay_the_limit_holds_and_a_call_takes_as_long_as_planned(
    sim: ModuleType, no_garbage: None, monkeypatch: pytest.MonkeyPatch, name: str, staging_ratio: float
) -> None:
    plain = profiled(name, copy_to_compute=1.0)
    inputs_seconds = stock(name, "all resident").seconds - predicted_modes(name, plain)["all resident"]
    stage_in_virtual_time(monkeypatch, staging_ratio * plain.device.pinned_copy_bytes_per_second)
    for locked_fraction in LOCKED_FRACTIONS:
        lockable_bytes = int(locked_fraction * weight_bytes(name))
        plan = plan_for(on_host(plain, lockable_bytes, staging_ratio=staging_ratio), name)
        pipe = tiny_pipelines.build(name)
        gc.collect()
        base, pinned = sim.memory_allocated(), sim.pinned_memory_allocated()
        sim.set_pinned_capacity(pinned + lockable_bytes)
        with install(pipe, plan, device="sim") as runtime:
            call = counted(pipe, name, base)
            measured = runtime.measured
        sim.set_pinned_capacity(2**62)
        assert torch.equal(call.output, on_cpu(name))
        assert sim.max_pinned_memory_allocated() - pinned <= plan.estimate.locked_bytes <= lockable_bytes
        assert measured is not None
        assert measured.moved_bytes == plan.estimate.moved_bytes
        assert call.seconds - inputs_seconds == pytest.approx(plan.estimate.seconds, rel=TOLERANCE)


@pytest.mark.parametrize("name", ["flux", pytest.param("sdxl", marks=SLOW), pytest.param("wan", marks=SLOW)])
def test_a_thread_of_its_own_stages_the_same_bits_call_after_call(sim: ModuleType, no_garbage: None, name: str) -> None:
    plan = planned(name, lockable_fraction=0.2)
    pipe = tiny_pipelines.build(name)
    before = threading.active_count()
    with install(pipe, plan, device="sim"):
        for _ in range(3):
            assert torch.equal(tiny_pipelines.run(pipe, name).cpu(), on_cpu(name))
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_what_stays_in_place_is_not_copied_and_is_where_it_was_in_the_end(sim: ModuleType, no_garbage: None) -> None:
    plan = planned("flux", lockable_fraction=0.2)
    pipe = tiny_pipelines.build("flux")
    where = {name: p.data_ptr() for name, p in pipe.transformer.named_parameters()}
    (placement,) = (p for p in plan.placements if p.component == "transformer")
    moving = range(max(placement.num_resident, 1), len(placement.groups))
    staged = {path for g in moving if not placement.is_locked(g) for path in placement.groups[g].modules}
    in_place = [name for name in where if any(name.startswith(f"{path}.") for path in staged if path)]
    assert in_place
    with install(pipe, plan, device="sim"):
        here = {name: p.data_ptr() for name, p in pipe.transformer.named_parameters()}
        tiny_pipelines.run(pipe, "flux")
        assert all(where[name] == here[name] for name in in_place)
    after = {name: p.data_ptr() for name, p in pipe.transformer.named_parameters()}
    assert all(where[name] == after[name] for name in in_place)


def test_an_edit_of_a_staged_weight_counts(sim: ModuleType, no_garbage: None) -> None:
    plan = planned("flux", lockable_fraction=0.2)
    want, pipe = tiny_pipelines.build("flux"), tiny_pipelines.build("flux")
    with install(pipe, plan, device="sim"):
        tiny_pipelines.run(pipe, "flux")
        for edited in (want, pipe):
            with torch.no_grad():
                for parameter in edited.transformer.parameters():
                    parameter.mul_(1.5)
        assert torch.equal(tiny_pipelines.run(pipe, "flux").cpu(), tiny_pipelines.run(want.to("sim"), "flux").cpu())


def test_where_the_system_locks_less_than_planned_the_rest_is_staged_with_one_warning(
    sim: ModuleType, no_garbage: None
) -> None:
    plan = plan_for(profiled("flux"), "flux")
    assert plan.estimate.pageable_bytes < plan.estimate.locked_bytes
    sim.set_pinned_capacity(sim.pinned_memory_allocated() + plan.estimate.locked_bytes // 2)
    pipe = tiny_pipelines.build("flux")
    with pytest.warns(UserWarning, match="weights in ordinary memory copy more slowly"):
        runtime = install(pipe, plan, device="sim")
    with runtime:
        assert torch.equal(tiny_pipelines.run(pipe, "flux").cpu(), on_cpu("flux"))


def test_an_error_of_the_thread_is_the_call_s_and_the_next_call_runs(
    sim: ModuleType, no_garbage: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned("flux", lockable_fraction=0.2)
    pipe = tiny_pipelines.build("flux")

    def fails(*_: Any) -> None:
        raise OSError("the disk is gone")

    with install(pipe, plan, device="sim"):
        with monkeypatch.context() as patched:
            patched.setattr("vramtune.offload.staging.fill", fails)
            with pytest.raises(OSError, match="the disk is gone"):
                tiny_pipelines.run(pipe, "flux")
        assert torch.equal(tiny_pipelines.run(pipe, "flux").cpu(), on_cpu("flux"))


shapes = st.lists(st.lists(st.integers(0, 40), min_size=0, max_size=3), min_size=1, max_size=6)


@given(shapes=shapes, slot_bytes=st.integers(1, 40).map(lambda n: 512 * n), dtypes=st.randoms(use_true_random=False))
def test_the_parts_of_a_group_are_its_bytes_as_they_lie_on_the_device(shapes, slot_bytes, dtypes) -> None:
    kinds = (torch.float32, torch.float16, torch.uint8)
    tensors = [torch.randint(0, 100, shape).to(dtypes.choice(kinds)) for shape in shapes]
    tensors = [t.transpose(0, -1) if t.dim() > 1 and dtypes.random() < 0.5 else t for t in tensors]
    group = Group("group", [HeldTensor(PlainTensor(t, ""), t, [], torch.device("cpu")) for t in tensors])
    group.is_locked = False
    group.settle_on_host(torch.device("cpu"))
    flat = torch.zeros(group.num_bytes, dtype=torch.uint8)
    slot = torch.empty(slot_bytes, dtype=torch.uint8)
    for part in cut(group, slot_bytes, MappedFiles()):
        slot.zero_()
        fill(slot, part)
        flat[part.start : part.start + part.num_bytes] = slot[: part.num_bytes]
    for extent, tensor in zip(group.extents, tensors, strict=True):
        found = flat[extent.offset : extent.offset + extent.num_bytes].view(extent.dtype)
        assert torch.equal(found.as_strided(extent.shape, extent.stride), tensor)


def test_page_locking_says_how_far_it_is_from_a_second_on(
    sim: ModuleType, no_garbage: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bar(tqdm):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options, file=io.StringIO())
            bars.append(options)

        def update(self, num_bytes: float | None = 1) -> bool | None:
            updates.append(num_bytes or 0)
            return super().update(num_bytes)

    bars, updates = list[dict[str, Any]](), list[float]()
    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    plan, pipe = planned("flux", lockable_fraction=0.4), tiny_pipelines.build("flux")
    with install(pipe, plan, device="sim", progress=True):
        (bar,) = bars
        assert (bar["total"], bar["delay"], bar["disable"]) == (plan.estimate.locked_bytes, 1, False)
        assert len(updates) > 5
        locked_bytes = sum(placement.locked_bytes for placement in plan.placements)
        assert locked_bytes * 0.9 < sum(updates) <= plan.estimate.locked_bytes
        tiny_pipelines.run(pipe, "flux")
    with install(pipe, plan, device="sim"):
        assert [bar["disable"] for bar in bars] == [False, True]


@pytest.mark.parametrize("at", [0, 3, 9])
def test_page_locking_that_is_interrupted_leaves_the_pipeline_as_it_was_and_nothing_locked(
    sim: ModuleType, no_garbage: None, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    plan, pipe = planned("flux", lockable_fraction=0.6), tiny_pipelines.build("flux")
    before, kind, locked_bytes = state_of(pipe), type(pipe), sim.pinned_memory_allocated()
    calls = 0

    def interrupted(num_bytes: int, device: torch.device) -> torch.Tensor | None:
        nonlocal calls
        calls += 1
        if calls > at:
            raise KeyboardInterrupt
        return pinned_buffer(num_bytes, device)

    with monkeypatch.context() as patched:
        patched.setattr("vramtune.offload.groups.pinned_buffer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            install(pipe, plan, device="sim", progress=True)
    gc.collect()
    assert sim.pinned_memory_allocated() == locked_bytes
    assert (state_of(pipe), type(pipe)) == (before, kind)
    with install(pipe, plan, device="sim"):
        assert torch.equal(tiny_pipelines.run(pipe, "flux").cpu(), on_cpu("flux"))


def test_a_pipeline_that_is_dropped_gives_back_what_was_locked_and_its_thread_ends(sim: ModuleType) -> None:
    gc.collect()
    plan, locked_bytes, threads = (
        planned("flux", lockable_fraction=0.2),
        sim.pinned_memory_allocated(),
        threading.active_count(),
    )
    pipe = tiny_pipelines.build("flux")
    install(pipe, plan, device="sim")
    tiny_pipelines.run(pipe, "flux")
    assert sim.pinned_memory_allocated() > locked_bytes
    (reader,) = (thread for thread in threading.enumerate() if thread.name.startswith("vramtune-staging"))
    del pipe
    gc.collect()
    reader.join(timeout=10)
    assert sim.pinned_memory_allocated() == locked_bytes
    assert threading.active_count() == threads
