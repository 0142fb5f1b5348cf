"""Many calls in a row, of random budgets, shapes, seeds and edits: always right, and nothing piles up.

20 calls; `VRAMTUNE_SOAK_CALLS=1000` for more.
"""

import os
import random
from types import ModuleType
from typing import Any

import pytest
import torch

from tests import tiny_pipelines
from tests.offload.tuned_pipelines import held_bytes, tuned, weight_bytes, whole
from vramtune.offload.runtime import Runtime

NUM_CALLS = int(os.environ.get("VRAMTUNE_SOAK_CALLS", "20"))
CALLS_PER_PLAN = 5
NAMES = ("sd15", "sdxl", "flux")
FRACTIONS = (0.4, 0.5, 0.7, 0.9, 1.0)
LOCKABLE_FRACTIONS = (None, 0.6, 0.2)


@pytest.mark.slow
@pytest.mark.usefixtures("no_garbage")
@pytest.mark.timeout(60 + 3 * NUM_CALLS)
def test_many_random_calls_are_right_and_leave_no_memory_behind(sim: ModuleType) -> None:
    rng = random.Random(0)
    pipes: dict[str, tuple[Any, Any]] = {name: (tiny_pipelines.build(name), whole(name)) for name in NAMES}
    for pair in pipes.values():
        for pipe in pair:
            pipe.set_progress_bar_config(disable=True)
    for name, (_, twin) in pipes.items():
        tiny_pipelines.run(twin, name)  # its scheduler keeps timesteps from now on
    before_bytes, before_pinned_bytes = held_bytes(), sim.pinned_memory_allocated()
    for episode in range(NUM_CALLS // CALLS_PER_PLAN):
        name = NAMES[episode % len(NAMES)]
        pipe, twin = pipes[name]
        sim.set_capacity(sim.DEFAULT_CAPACITY_BYTES)
        lockable_fraction = rng.choice(LOCKABLE_FRACTIONS)
        with tuned(name, rng.choice(FRACTIONS), lockable_fraction=lockable_fraction, pipe=pipe) as (_, runtime):
            soak(sim, rng, name, twin, pipe, runtime)
        share_schedule(pipe, twin)
        assert held_bytes() == before_bytes, f"plan {episode} ({name})"
        assert sim.pinned_memory_allocated() == before_pinned_bytes, f"plan {episode} ({name})"


def soak(sim: ModuleType, rng: random.Random, name: str, twin: Any, pipe: Any, runtime: Runtime) -> None:
    at_rest: set[tuple[int, int]] = set()
    for _ in range(CALLS_PER_PLAN):
        edit = rng.choice(EDITS)
        seed = rng.random()
        for each in (pipe, twin):
            edit(each, random.Random(seed))
        settings = {"height": rng.choice((16, 32, 48)), "width": rng.choice((16, 32, 48))}
        settings |= {"num_inference_steps": rng.randint(1, 4)}
        seed = rng.randrange(1000)
        want = run(twin, name, seed, settings)
        sim.set_capacity(capacity(rng, name, runtime, settings))
        got = run(pipe, name, seed, settings)
        sim.set_capacity(sim.DEFAULT_CAPACITY_BYTES)
        assert torch.equal(got, want), (name, settings, edit)
        share_schedule(pipe, twin)
        if not runtime.overrun_bytes:
            at_rest.add((held_bytes(), sim.pinned_memory_allocated()))
    assert len(at_rest) <= 1, f"{name}: device and pinned bytes between calls: {sorted(at_rest)}"


def run(pipe: Any, name: str, seed: int, settings: dict[str, int]) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    extra = {key: value for key, value in tiny_pipelines.CALL[name].items() if key not in settings}
    return pipe("a dog", generator=generator, output_type="pt", **extra, **settings)[0].cpu()


def share_schedule(pipe: Any, twin: Any) -> None:
    """A scheduler keeps the last call's timesteps on the device: they must not count."""
    for name in ("timesteps", "sigmas"):
        if hasattr(twin.scheduler, name):
            setattr(pipe.scheduler, name, getattr(twin.scheduler, name))


def capacity(rng: random.Random, name: str, runtime: Runtime, settings: dict[str, int]) -> int:
    """Sometimes less than planned, by up to a tenth of the weights, where the image is no larger than planned."""
    if settings["height"] * settings["width"] > 32 * 32 or rng.random() < 0.7:
        return int(torch.sim.DEFAULT_CAPACITY_BYTES)  # type: ignore[attr-defined]
    groups = (group for component in runtime._binding.components for group in component.groups)
    resting = sum(group.num_bytes for group in groups if not group.master_views)
    less = int(rng.uniform(0, 0.1) * weight_bytes(name))
    return held_bytes() - resting + runtime.plan.estimate.peak_bytes - less


# ---------------------------------------------------------------------------------------------------
# Edits, the same on both for the same random numbers


def no_edit(pipe: Any, rng: random.Random) -> None:
    pass


def add_in_place(pipe: Any, rng: random.Random) -> None:
    with torch.no_grad():
        pick(pipe, rng)[2].add_(0.01)


def rebind_data(pipe: Any, rng: random.Random) -> None:
    _, _, weight = pick(pipe, rng)
    weight.data = weight.data * 1.01


def load_again(pipe: Any, rng: random.Random) -> None:
    module, name, weight = pick(pipe, rng)
    module.load_state_dict({name: weight.detach().cpu() * 0.99}, strict=False)


def exchange_parameter(pipe: Any, rng: random.Random) -> None:
    module, name, weight = pick(pipe, rng)
    setattr(module, name, torch.nn.Parameter(weight.detach() * 1.01, requires_grad=weight.requires_grad))


def cast_down_and_up(pipe: Any, rng: random.Random) -> None:
    component = pipe.components[pick_component(pipe, rng)]
    component.to(torch.bfloat16)
    component.to(torch.float32)


EDITS = (no_edit, add_in_place, rebind_data, load_again, exchange_parameter, cast_down_and_up)


def pick(pipe: Any, rng: random.Random) -> tuple[torch.nn.Module, str, torch.nn.Parameter]:
    """Any weight of any component: its module, its name in there, itself."""
    component = pick_component(pipe, rng)
    name, weight = rng.choice(list(pipe.components[component].named_parameters()))
    path, _, name = name.rpartition(".")
    return pipe.components[component].get_submodule(path), name, weight


def pick_component(pipe: Any, rng: random.Random) -> str:
    return rng.choice(sorted(n for n, m in pipe.components.items() if isinstance(m, torch.nn.Module)))
