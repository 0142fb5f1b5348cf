"""Weights in files on a virtual disk, with less of the host's memory than they take: bits, budgets and the time planned."""

import functools
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.from_disk import LEAST_GROUPS, MOST_TIMES_SLOWEST, num_brought_in, of_model, slowest_engine_seconds
from tests import tiny_pipelines
from tests.offload.test_contract import counted, on_cpu, predicted_modes, stock
from tests.offload.test_staging import plan_for
from tests.offload.tuned_pipelines import profiled, weight_bytes
from tests.simgpu.staging import stage_in_virtual_time
from vramtune.catalog.weights import load_mapped
from vramtune.offload import staging
from vramtune.offload.install import install
from vramtune.profiler.on_disk import with_files
from vramtune.schema import Measurement, Plan, Profile
from vramtune.tuner.simulate import recall

TOLERANCE = 0.03
RAM_FRACTIONS = (1.0, 0.6, 0.4, 0.2)
"""Of the weights, what there is of the host's memory."""
MOST_TIMES_SLOWEST_ONCE = 1.7
"""Of a stage of one iteration, whose first group has nothing to hide behind: of so small a model it is a tenth, and a copy's
latency is as long as some of its copies."""
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @functools.cache
    def saved(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        tiny_pipelines.build(name).save_pretrained(folder)
        return folder

    return saved


def from_files(name: str, folder: Path) -> Any:
    return load_mapped(type(tiny_pipelines.build(name)), folder)


def on_host(profile: Profile, ram_bytes: int, *, staging_ratio: float, disk_ratio: float) -> Profile:
    """The profile for a host with so much memory, which stages and reads so many times as fast as the link copies."""
    copied = profile.device.pinned_copy_bytes_per_second
    device = replace(
        profile.device,
        ram_bytes=ram_bytes,
        lockable_bytes=ram_bytes,
        staging_bytes_per_second=staging_ratio * copied,
        storage_bytes_per_second=disk_ratio * copied,
        storage_source="given",
    )
    return replace(profile, device=device)


@pytest.mark.parametrize(
    ("name", "disk_ratio"),
    [
        ("flux", 0.5),
        pytest.param("flux", 4.0, marks=SLOW),
        *(pytest.param(name, ratio, marks=SLOW) for name in ("sdxl", "wan") for ratio in (0.5, 4.0)),
    ],
)
def test_from_a_disk_bits_stay_the_host_s_budget_holds_and_a_call_takes_as_long_as_planned(
    sim: ModuleType, no_garbage: None, monkeypatch: pytest.MonkeyPatch, folders: Any, name: str, disk_ratio: float
) -> None:
    plain = profiled(name, copy_to_compute=1.0)
    inputs_seconds = stock(name, "all resident").seconds - predicted_modes(name, plain)["all resident"]
    copied = plain.device.pinned_copy_bytes_per_second
    stage_in_virtual_time(monkeypatch, 2 * copied, disk_bytes_per_second=disk_ratio * copied)
    num_streamed = 0
    for fraction in RAM_FRACTIONS:
        pipe, ram_bytes = from_files(name, folders(name)), int(fraction * weight_bytes(name))
        host = on_host(with_files(plain, pipe), ram_bytes, staging_ratio=2.0, disk_ratio=disk_ratio)
        plan = plan_for(host, name)
        base, pinned = sim.memory_allocated(), sim.pinned_memory_allocated()
        with install(pipe, plan, device="sim") as runtime:
            call = counted(pipe, name, base)
            measured = runtime.measured
            assert measured is not None
        assert torch.equal(call.output, on_cpu(name))
        assert sim.max_pinned_memory_allocated() - pinned <= plan.estimate.host_bytes <= ram_bytes
        assert measured.moved_bytes == plan.estimate.moved_bytes
        assert call.seconds - inputs_seconds == pytest.approx(plan.estimate.seconds, rel=TOLERANCE)
        for name_of_stage, num_iterations, times_slowest in in_time(host, plan, measured):
            num_streamed += num_iterations > 1
            most = MOST_TIMES_SLOWEST if num_iterations > 1 else MOST_TIMES_SLOWEST_ONCE
            assert times_slowest <= most, (name_of_stage, fraction)
    assert num_streamed or name == "wan", "its transformer streams fewer groups"


def in_time(profile: Profile, plan: Plan, measured: Measurement) -> Iterator[tuple[str, int, float]]:
    """Stages in which a component brings in as many groups as count: their iterations, and how many times what takes longest
    there, if it waits for nothing, they took."""
    candidate = recall(profile, plan)
    for s, (stage, taken) in enumerate(zip(plan.estimate.stages, measured.stages, strict=True)):
        if num_brought_in(candidate, s) >= LEAST_GROUPS:
            yield stage.name, stage.num_iterations, taken.seconds / slowest_engine_seconds(candidate, s)


@pytest.mark.parametrize("name", ["flux.1-dev", "qwen-image"])
def test_of_a_real_model_from_a_disk_every_stage_with_many_groups_is_planned_near_its_slowest_engine(name: str) -> None:
    rows = list(of_model(name))
    assert {row.stage for row in rows} >= {"transformer"}
    assert any(row.num_iterations == 1 for row in rows)
    assert all(row.times_slowest <= MOST_TIMES_SLOWEST for row in rows), rows


def test_files_are_read_by_a_thread_of_its_own_whose_errors_are_the_call_s(
    sim: ModuleType, no_garbage: None, monkeypatch: pytest.MonkeyPatch, folders: Any
) -> None:
    pipe = from_files("flux", folders("flux"))
    host = on_host(with_files(profiled("flux"), pipe), weight_bytes("flux") // 5, staging_ratio=2.0, disk_ratio=0.5)
    read, readers = staging.read, set[str]()

    def noted(part: staging.Part) -> None:
        readers.add(threading.current_thread().name)
        read(part)

    def fails(part: staging.Part) -> None:
        raise OSError("the disk is gone")

    with install(pipe, plan_for(host, "flux"), device="sim"):
        monkeypatch.setattr(staging, "read", fails)
        with pytest.raises(OSError, match="the disk is gone"):
            tiny_pipelines.run(pipe, "flux")
        monkeypatch.setattr(staging, "read", noted)
        assert torch.equal(tiny_pipelines.run(pipe, "flux").cpu(), on_cpu("flux"))
    (name,) = readers
    assert name.startswith("vramtune-reading")
