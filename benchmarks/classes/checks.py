"""What must hold for every pipeline class, checked on a small one of it and on the simulated GPU.

`untuned` runs it as diffusers does; the checks compare with that. Each raises `Wrong` with what it found.
"""

import gc
import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import DiffusionPipeline

import vramtune
from benchmarks.classes.outputs import Output, differences, flat, seed_everything
from benchmarks.classes.state import State, changes, digest
from vramtune import Plan, Profile
from vramtune.contract import excluded_components
from vramtune.units import GIB

ROOMY_GIB = 16
"""A budget in which every small pipeline fits whole."""
NUM_SLOTS = 2
MOST_CHANGES_SHOWN = 3


class Wrong(AssertionError):
    """A check found what must not be."""


class Subject(Protocol):
    """A pipeline that can be built again and again, the same each time, and what to call it with."""

    def pipe(self) -> DiffusionPipeline:
        """A fresh one, on the host, in eval mode."""

    def inputs(self, device: str = "cpu") -> dict[str, Any]:
        """Fresh arguments of a call, tensors on that device."""

    def prepare(self, pipe: DiffusionPipeline) -> None:
        """Do what the pipeline needs before each call."""


@dataclass(frozen=True)
class Untuned:
    """Two calls of a pipeline that is all on the simulated GPU."""

    first: Output
    second: Output
    left_by_calls: frozenset[str]
    """Paths of what calls change of a pipeline, tuned or not."""


def call(subject: Subject, pipe: DiffusionPipeline, **more: Any) -> Output:
    """One seeded call on the simulated GPU."""
    subject.prepare(pipe)
    seed_everything()
    return flat(pipe(**subject.inputs("sim") | more))


def fresh_gpu() -> None:
    """The simulated GPU with nothing on it, and as large as the roomy budget."""
    gc.collect()
    torch.accelerator.empty_cache()
    sim = torch.get_device_module("sim")
    sim.set_capacity(ROOMY_GIB * GIB)
    sim.reset()


def whole(subject: Subject) -> DiffusionPipeline:
    """The untuned pipeline, all on the simulated GPU."""
    fresh_gpu()
    return subject.pipe().to("sim")


def untuned(subject: Subject) -> Untuned:
    pipe = whole(subject)
    before = State(pipe=pipe)
    first, second = call(subject, pipe), call(subject, pipe)
    return Untuned(first, second, frozenset(changes(before, State(pipe=pipe))))


# ---------------------------------------------------------------------------------------------------
# Checks


def check_predicted(subject: Subject, expected: Untuned | None) -> Profile:
    """A prediction leaves pipeline, arguments and process as they were, and the next call is the same as ever.

    `expected` is None where the untuned pipeline does not run: then it is not called. What it costs on the simulated
    GPU is returned.
    """
    fresh_gpu()
    pipe, inputs = subject.pipe(), subject.inputs("sim")
    subject.prepare(pipe)
    before = State(pipe=pipe, inputs=inputs, **process())
    try:
        costs = vramtune.profile(pipe, call_kwargs=inputs, progress=False)
    except Exception as error:
        if found := what_changed(before, State(pipe=pipe, inputs=inputs, **process())):
            error.add_note(f"And it is not as it was: {found}")
        raise
    after = State(pipe=pipe, inputs=inputs, **process())
    if after.fakes:
        raise Wrong(f"tensors without values were left in it: {listed(after.fakes)}")
    if found := what_changed(before, after):
        raise Wrong(f"it is not as it was: {found}")
    estimate = vramtune.plan(costs, vram_gb=8).estimate
    if estimate.peak_bytes <= 0 or estimate.seconds <= 0:
        raise Wrong(f"predicted {estimate.peak_bytes} bytes, {estimate.seconds} s")
    if expected is not None:
        fresh_gpu()
        expect_equal("the next call", call(subject, pipe.to("sim")), expected.first)
    return costs


def check_tuned(subject: Subject, expected: Untuned, costs: Profile) -> Plan:
    """Tuned where everything fits: two calls as ever, and the pipeline as it was after `remove()`."""
    fresh_gpu()
    pipe = subject.pipe()
    subject.prepare(pipe)
    before = State(pipe=pipe)
    plan = vramtune.plan(costs, ROOMY_GIB)
    tuned = vramtune.install(pipe, plan, profile=costs, device="sim")
    check_calls(subject, pipe, tuned, expected, before)
    return tuned.plan


def check_streamed(subject: Subject, expected: Untuned, plan: Plan) -> None:
    """The same with all groups but the roots streamed: the hardest that a plan can be."""
    fresh_gpu()
    pipe = subject.pipe()
    subject.prepare(pipe)
    before = State(pipe=pipe)
    tuned = vramtune.install(pipe, streaming(plan, excluded_components(pipe)), device="sim")
    check_calls(subject, pipe, tuned, expected, before)


def check_calls(
    subject: Subject, pipe: DiffusionPipeline, tuned: vramtune.Tuned, expected: Untuned, before: State
) -> None:
    expect_equal("the first call", call(subject, pipe), expected.first)
    expect_equal("the second call", call(subject, pipe), expected.second)
    tuned.remove()
    if found := what_changed(before, State(pipe=pipe), leaving_out=expected.left_by_calls):
        raise Wrong(f"it is not as it was after remove(): {found}")


def streaming(plan: Plan, excluded: Collection[str]) -> Plan:
    """The plan with nothing kept but the roots of what runs, and what the pipeline excludes from offload."""
    placements = tuple(
        placement
        if placement.component in excluded
        else replace(placement, kept=tuple(map(int, placement.active)), num_slots=NUM_SLOTS)
        for placement in plan.placements
    )
    return replace(plan, placements=placements)


# ---------------------------------------------------------------------------------------------------
# What they find


def expect_equal(which: str, found: Output, expected: Output) -> None:
    if texts := differences(found, expected):
        raise Wrong(f"{which}: {listed(texts)}")


def what_changed(before: State, after: State, *, leaving_out: Collection[str] = ()) -> str:
    found = changes(before, after, leaving_out=leaving_out)
    return listed([f"{path} {text}" for path, text in found.items()])


def listed(texts: Collection[str]) -> str:
    shown = "; ".join(list(texts)[:MOST_CHANGES_SHOWN])
    more = len(texts) - MOST_CHANGES_SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown


def process() -> dict[str, object]:
    """What a prediction could change outside of the pipeline."""
    return {
        "torch's random numbers": digest(torch.get_rng_state()),
        "numpy's random numbers": repr(np.random.get_state()),
        "Python's random numbers": hash(random.getstate()),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
    }
