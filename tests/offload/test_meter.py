"""What a call is measured to take, stage by stage."""

import threading
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from tests import tiny_pipelines
from tests.offload.tuned_pipelines import NUM_ENCODERS, held_bytes, planned, profiled, tuned, whole
from vramtune.offload.install import install
from vramtune.schema import Measurement, Plan

pytestmark = pytest.mark.usefixtures("no_garbage")

# ---------------------------------------------------------------------------------------------------
# Measured


@pytest.mark.parametrize("name", ["sdxl", "flux", "wan22"])
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_a_measurement_is_what_the_device_counted(
    sim: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, fraction: float
) -> None:
    resident = whole(name)
    profiled(name)
    tiny_pipelines.run(resident, name)
    sim.reset()
    tiny_pipelines.run(resident, name)
    input_bytes = sim.counters().moved_bytes
    del resident
    with tuned(name, fraction) as (pipe, runtime):
        tiny_pipelines.run(pipe, name)
        held_bytes()
        sim.reset()
        tiny_pipelines.run(pipe, name)
        sim.synchronize()
        seconds, counters = sim.virtual_seconds(), sim.counters()
        measured = runtime.measured
        assert measured.seconds == pytest.approx(seconds, rel=0.02)
        assert measured.seconds == pytest.approx(sum(stage.seconds for stage in measured.stages))
        assert [stage.name for stage in measured.stages] == [s.name for s in runtime.plan.stages]
        assert measured.moved_bytes == counters.moved_bytes - input_bytes
        assert measured.moved_bytes == runtime.plan.estimate.moved_bytes
        assert measured.peak_bytes == counted_peak_bytes(sim, monkeypatch, pipe, name)


def test_who_asks_while_a_call_runs_gets_the_one_before_it_and_does_not_wait(sim: ModuleType) -> None:
    asked: list[Measurement | None] = []

    def ask(pipe: Any, step: int, timestep: Any, tensors: Any) -> dict[str, Any]:
        thread = threading.Thread(target=lambda: asked.append(runtime.measured))
        thread.start()
        thread.join(timeout=20)
        return {}

    with tuned("flux", 0.5) as (pipe, runtime):
        tiny_pipelines.run(pipe, "flux", callback_on_step_end=ask)
        assert set(asked) == {None}
        first = runtime.measured
        asked.clear()
        tiny_pipelines.run(pipe, "flux", callback_on_step_end=ask)
        assert asked
        assert all(each == first for each in asked)


def counted_peak_bytes(sim, monkeypatch, pipe, name):  # type: ignore[no-untyped-def]
    """Peak of another call, during which nothing sets the counter back."""
    held_bytes()
    sim.reset()
    monkeypatch.setattr(torch.accelerator, "reset_peak_memory_stats", lambda *_: None)
    tiny_pipelines.run(pipe, name)
    return sim.max_memory_allocated()


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_exposed_copies_are_zero_where_all_is_resident_and_seen_where_copying_is_slow(
    sim: ModuleType, name: str
) -> None:
    assert exposed_seconds(name, 1.0) == 0
    assert exposed_seconds(name, 0.4) > 0.05 * planned(name, 0.4, copy_to_compute=5).estimate.seconds


def exposed_seconds(name: str, fraction: float) -> float:
    with tuned(name, fraction, copy_to_compute=5) as (pipe, runtime):
        tiny_pipelines.run(pipe, name)
        tiny_pipelines.run(pipe, name)
        measured: Measurement = runtime.measured
        return sum(stage.exposed_copy_seconds for stage in measured.stages)


def test_waits_added_up_during_a_call_make_the_same_sum(sim: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    kept_to_the_end = exposed_seconds("flux", 0.4)
    monkeypatch.setattr("vramtune.offload.meter.MOST_WAITS", 2)
    assert exposed_seconds("flux", 0.4) == pytest.approx(kept_to_the_end, rel=1e-9)


def test_a_measured_peak_includes_the_context(sim: ModuleType) -> None:
    plan, measurements = planned("flux"), []
    for context_bytes in (None, 12_345):
        pipe = tiny_pipelines.build("flux")
        with install(pipe, plan, device="sim", context_bytes=context_bytes) as runtime:
            tiny_pipelines.run(pipe, "flux")
            held_bytes()
            tiny_pipelines.run(pipe, "flux")
            measurements.append(runtime.measured)
        assert measurements[-1].context_bytes == context_bytes
        del pipe
        held_bytes()
    assert measurements[1].peak_bytes - measurements[0].peak_bytes == 12_345


# ---------------------------------------------------------------------------------------------------
# Stages that come again


def previewing(plan: Plan) -> Plan:
    """Flux's plan for a call that decodes once between two steps: the last two stages come twice."""
    *encoders, denoise, decode = plan.stages
    again = [replace(stage, name=f"{stage.name} again") for stage in (denoise, decode)]
    placements = (replace(p, active=(*p.active, *p.active[-2:]), kept=(*p.kept, *p.kept[-2:])) for p in plan.placements)
    return replace(plan, stages=(*encoders, denoise, decode, *again), placements=tuple(placements))


def test_a_component_of_two_stages_runs_in_the_one_that_the_call_has_come_to(sim: ModuleType) -> None:
    plan, pipe = previewing(planned("flux", 0.4)), tiny_pipelines.build("flux")
    embeds = {
        "prompt": None,
        "prompt_embeds": torch.zeros(1, 48, 32, device="sim"),
        "pooled_prompt_embeds": torch.zeros(1, 32, device="sim"),
    }

    def call(stop: int | None = None) -> None:
        def preview(pipe: Any, step: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:
            if step == 1:
                pipe.vae.decode(torch.zeros(1, pipe.vae.config.latent_channels, 8, 8, device="sim"))
            if step == stop:
                raise KeyboardInterrupt
            return {}

        size = {"height": 32, "width": 32, "num_inference_steps": 4}
        pipe(**embeds, **size, output_type="pt", callback_on_step_end=preview)

    with install(pipe, plan, device="sim") as runtime:
        for _ in range(2):
            call()
            assert [stage.name for stage in runtime.measured.stages] == [
                stage.name for stage in plan.stages[NUM_ENCODERS:]
            ]
            with pytest.raises(KeyboardInterrupt):
                call(stop=2)


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_each_stage_is_measured_by_itself(sim: ModuleType, name: str) -> None:
    with tuned(name, 0.4, copy_to_compute=5) as (pipe, runtime):
        tiny_pipelines.run(pipe, name)
        tiny_pipelines.run(pipe, name)
        measured, estimate = runtime.measured, runtime.plan.estimate
        assert [s.moved_bytes for s in measured.stages] == [s.moved_bytes for s in estimate.stages]
        assert all(0 <= stage.exposed_copy_seconds <= stage.seconds for stage in measured.stages)
        assert len({stage.peak_bytes for stage in measured.stages}) > 1
