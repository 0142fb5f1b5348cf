"""Tiny pipelines under a budget on the simulated accelerator, and the same ones whole on it."""

import functools
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from diffusers import DiffusionPipeline

from tests import tiny_pipelines
from tests.simgpu import load
from tests.simgpu.prediction import RATES, predicted_profile, sim_device
from vramtune.errors import BudgetError
from vramtune.offload.install import install
from vramtune.offload.runtime import Runtime
from vramtune.schema import Plan, Profile
from vramtune.tuner.search import choose_plan
from vramtune.units import GIB

NUM_ENCODERS = 2
"""Number of Flux's text encoders, which run before its transformer."""
TIGHT_FRACTION = 0.4
"""Fraction of the weights that has room; every component that runs long is streamed."""


@functools.cache
def _traced(name: str) -> Profile:
    load().set_rates(**RATES)
    return predicted_profile(name)


def weight_bytes(name: str) -> int:
    """Weight bytes of the named pipeline that a plan moves or keeps."""
    return sum(component.used_bytes for component in _traced(name).components)


def profiled(name: str, *, copy_to_compute: float = 1.0) -> Profile:
    """The named pipeline's profile, and the simulated device at the rates it is made for, as `at_link_ratio` has it."""
    return at_link_ratio(_traced(name), copy_to_compute)


def at_link_ratio(profile: Profile, copy_to_compute: float) -> Profile:
    """A profile for a link of another rate, which the simulated device gets too.

    The link is so slow that copying the largest component of the longest stage takes `copy_to_compute` times what
    one iteration computes.
    """
    longest = max(profile.stages, key=lambda stage: stage.num_iterations * stage.seconds)
    largest_bytes = max(profile.component(c).used_bytes for c in longest.components)
    rate = largest_bytes / (copy_to_compute * longest.seconds)
    pinned = {key: rate for key in RATES if key.startswith("pinned")}
    pageable = {"pageable_copy_bytes_per_second": rate / 4, "readback_bytes_per_second": rate / 4}
    load().set_rates(**RATES | pinned | pageable)
    return replace(profile, device=sim_device())


@functools.cache
def planned(
    name: str, fraction: float = TIGHT_FRACTION, *, copy_to_compute: float = 1.0, lockable_fraction: float | None = None
) -> Plan:
    """The plan for a budget that has room for this fraction of the weights (1: all resident), and a host that may page-lock
    that one (None: all)."""
    profile = profiled(name, copy_to_compute=copy_to_compute)
    if lockable_fraction is not None:
        lockable_bytes = int(lockable_fraction * weight_bytes(name))
        profile = replace(profile, device=replace(profile.device, lockable_bytes=lockable_bytes))
    peak_bytes = choose_plan(profile, profile.device.usable_bytes).estimate.peak_bytes
    return choose_plan(profile, peak_bytes - int((1 - fraction) * weight_bytes(name)))


@contextmanager
def tuned(
    name: str,
    fraction: float = 0.5,
    *,
    copy_to_compute: float = 1.0,
    lockable_fraction: float | None = None,
    pipe: DiffusionPipeline | None = None,
) -> Iterator[tuple[Any, Runtime]]:
    """The named pipeline under that plan, with the rates it is made for; removed at the end."""
    plan = planned(name, fraction, copy_to_compute=copy_to_compute, lockable_fraction=lockable_fraction)
    profiled(name, copy_to_compute=copy_to_compute)
    pipe = tiny_pipelines.build(name) if pipe is None else pipe
    with install(pipe, plan, device="sim") as runtime:
        yield pipe, runtime


def smallest_gib(profile: Profile) -> float:
    """A little more than the smallest budget that a plan exists for: what can be streamed is."""
    with pytest.raises(BudgetError) as raised:
        choose_plan(profile, 1)
    return 1.01 * raised.value.smallest_bytes / GIB


def roles(plan: Plan) -> set[str]:
    """What any placement is in any stage."""
    return {placement.role(stage) for placement in plan.placements for stage in range(len(placement.kept))}


def resident_bytes(plan: Plan) -> int:
    """Weight bytes that a plan keeps on the device between calls; methods of a component share its root."""
    groups = {
        (placement.component, group.name, group.modules): group.weight_bytes
        for placement in plan.placements
        for group in placement.groups[: placement.num_resident]
    }
    return sum(groups.values())


def whole(name: str) -> Any:
    """The named pipeline all on the device, untuned."""
    return tiny_pipelines.build(name).to("sim")


def held_bytes() -> int:
    """Bytes allocated on the device, without garbage that only waits to be collected."""
    gc.collect()
    load().synchronize()
    return int(load().memory_allocated())
