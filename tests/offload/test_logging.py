"""What the package's loggers say at DEBUG of a tuned pipeline's calls."""

import logging
import re
from types import ModuleType

import pytest
import torch

from tests import tiny_pipelines
from tests.offload.test_stream import CPU, EagerLane, make_group
from tests.offload.tuned_pipelines import planned, tuned
from vramtune.offload.fit import held_bytes, planned_bytes
from vramtune.offload.install import install
from vramtune.offload.memory_limit import MemoryLimit
from vramtune.offload.stream import Passage, Ring, Traffic

pytestmark = pytest.mark.usefixtures("no_garbage")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log at DEBUG, from here on."""
    caplog.set_level(logging.DEBUG, logger="vramtune")
    return caplog


def test_every_stage_of_a_call_is_logged_when_it_begins(sim: ModuleType, log: pytest.LogCaptureFixture) -> None:
    with tuned("flux") as (pipe, runtime):
        tiny_pipelines.run(pipe, "flux")
    begun = [line for line in log.messages if line.startswith("stage")]
    assert begun == [f"stage {stage.name} begins" for stage in runtime.plan.stages]


def test_an_eviction_is_logged_with_its_bytes(sim: ModuleType, log: pytest.LogCaptureFixture) -> None:
    with tuned("flux", 0.6) as (pipe, runtime):
        pipe.text_encoder_2._hf_hook.pre_forward(pipe.text_encoder_2)
        copied = list(runtime._conductor._copies)
        assert copied
        log.clear()
        pipe.maybe_free_model_hooks()
        num_bytes = sum(group.num_bytes for group in copied)
        assert log.messages == [f"evicted {num_bytes} bytes ({len(copied)} groups)"]


def test_out_of_memory_logs_the_refit_of_its_stage_and_the_next_attempt(
    sim: ModuleType, log: pytest.LogCaptureFixture
) -> None:
    def fail_once(*_: object) -> None:
        if not failures:
            failures.append(True)
            raise torch.OutOfMemoryError("for the test")

    failures: list[bool] = []
    with tuned("flux", 0.6) as (pipe, runtime):
        stages = [stage.name for stage in runtime.plan.stages]
        denoise = stages.index("transformer")
        pipe.transformer.transformer_blocks[1].register_forward_hook(fail_once)
        tiny_pipelines.run(pipe, "flux")
        held = held_bytes(runtime._binding.placements, denoise)
        given_up = planned_bytes(runtime.plan, denoise) - held
    refit = f"stage transformer: weights give up {given_up} bytes"
    retry = "transformer ran out of memory: attempt 2 with fewer weights"
    assert given_up > 0
    assert [line for line in log.messages if line in (refit, retry)] == [refit, retry]
    assert sum("ran out of memory" in line for line in log.messages) == 1


def test_a_visit_out_of_the_planned_order_logs_where_the_order_is_taken_up(log: pytest.LogCaptureFixture) -> None:
    groups = [make_group(number, 512) for number in range(4)]
    passage = Passage(Ring(1024, CPU))
    traffic = Traffic(EagerLane(), [(passage, group) for group in groups], 1, {})  # type: ignore[arg-type]
    traffic.enter(passage, groups[0])
    assert not log.messages
    traffic.enter(passage, groups[3])
    assert log.messages == ["group group 3 is out of the planned order: order taken up again at visit 3"]


def test_components_are_logged_when_adopted_exchanged_and_released(
    sim: ModuleType, log: pytest.LogCaptureFixture
) -> None:
    pipe = tiny_pipelines.build("flux")
    with install(pipe, planned("flux"), device="sim"):
        names = [name for name in pipe.components if re.match("text_encoder|transformer|vae", name)]
        assert sorted(log.messages) == sorted(f"component {name} adopted" for name in names)
        pipe.vae = tiny_pipelines.build("flux").vae
        log.clear()
        tiny_pipelines.run(pipe, "flux")
        assert [line for line in log.messages if line.startswith("component")] == [
            "component vae was exchanged or put in since the last call",
            "component vae released",
            "component vae adopted",
        ]
        log.clear()
    assert sorted(log.messages) == sorted(f"component {name} released" for name in names)


def test_a_memory_limit_is_logged_when_set_and_put_back(
    sim: ModuleType, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sim, "get_per_process_memory_fraction", lambda device: 1.0, raising=False)
    monkeypatch.setattr(sim, "set_per_process_memory_fraction", lambda fraction, device: None, raising=False)
    with MemoryLimit(torch.device("sim", 0), sim.DEFAULT_CAPACITY_BYTES // 4):
        assert log.messages == ["memory limit of sim:0 set to 0.2500 of it (was 1.0000)"]
        log.clear()
    assert log.messages == ["memory limit of sim:0 put back to 1.0000 of it"]
