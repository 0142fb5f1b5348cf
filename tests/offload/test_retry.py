"""Less memory than planned, or less than there would be."""

import contextlib
from types import ModuleType

import pytest
import torch

from tests import tiny_pipelines
from tests.offload.plans import NUM_ENCODERS, held_bytes, tuned, weight_bytes, whole
from vramtune.offload.install import Installation
from vramtune.offload.retry import is_out_of_memory, limited, remember_draws, with_room

pytestmark = pytest.mark.usefixtures("no_garbage")


# ---------------------------------------------------------------------------------------------------
# Out of memory


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "wan"])
@pytest.mark.parametrize("fraction", [0.6, 1.0])
@pytest.mark.parametrize("less", [0.03, 0.15])
def test_a_call_that_gets_less_than_planned_is_right_and_the_next_one_knows(
    sim: ModuleType, name: str, fraction: float, less: float
) -> None:
    want = tiny_pipelines.run(whole(name), name).cpu()
    before_bytes = held_bytes()
    with tuned(name, fraction) as (pipe, installation):
        planned_bytes = installation.plan.estimate.peak_bytes
        capacity = before_bytes + planned_bytes - int(less * weight_bytes(name))
        sim.set_capacity(capacity)
        first, peak_bytes = measured_call(pipe, name, installation, want)
        assert first.num_out_of_memory > 0
        assert peak_bytes <= capacity
        assert sum(installation.overrun_bytes.values()) > 0
        assert set(installation.overrun_bytes) <= {stage.name for stage in installation.plan.stages}
        second, peak_bytes = measured_call(pipe, name, installation, want)
        assert second.num_out_of_memory == 0
        assert peak_bytes <= capacity


def measured_call(pipe, name, installation, want):  # type: ignore[no-untyped-def]
    held_bytes()
    torch.accelerator.reset_peak_memory_stats()
    output = tiny_pipelines.run(pipe, name).cpu()
    assert torch.equal(output, want)
    return installation.measured, installation.measured.peak_bytes


def test_what_nothing_fits_raises_and_leaves_the_pipeline_usable(sim: ModuleType) -> None:
    want = tiny_pipelines.run(whole("flux"), "flux").cpu()
    with tuned("flux", 0.5) as (pipe, installation):
        at_rest_bytes = held_bytes()
        sim.set_capacity(at_rest_bytes + 2**17)  # enough for what the pipeline itself makes
        with pytest.raises(torch.OutOfMemoryError) as raised:
            tiny_pipelines.run(pipe, "flux", height=128, width=128)
        assert any("vramtune" in note for note in raised.value.__notes__)
        del raised
        assert installation.overrun_bytes
        assert installation.measured is None
        assert held_bytes() <= at_rest_bytes
        sim.set_capacity(sim.DEFAULT_CAPACITY_BYTES)
        assert torch.equal(tiny_pipelines.run(pipe, "flux").cpu(), want)
        assert installation.measured.num_out_of_memory == 0


def test_out_of_memory_for_a_components_inputs_is_its_own_stages(
    sim: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = tiny_pipelines.run(whole("flux"), "flux").cpu()
    with tuned("flux", 0.6) as (pipe, installation):
        num_attempts = 0

        def bring(self: Installation, inputs: object) -> object:
            nonlocal num_attempts
            num_attempts += 1
            if num_attempts == NUM_ENCODERS + 1:  # the first of the transformer
                raise torch.OutOfMemoryError("for the test")
            return brought(self, inputs)

        brought = Installation._brought
        monkeypatch.setattr(Installation, "_brought", bring)
        assert torch.equal(tiny_pipelines.run(pipe, "flux").cpu(), want)
        assert list(installation.overrun_bytes) == ["transformer"]
        assert installation.measured.num_out_of_memory == 1


def test_a_call_that_is_run_again_draws_the_same_random_numbers(sim: ModuleType) -> None:
    drawn = []

    def draw(*_: object) -> None:
        drawn.append(torch.rand(3))
        if len(drawn) == 1:
            raise torch.OutOfMemoryError("for the test")

    with tuned("flux", 0.6) as (pipe, installation):
        handle = pipe.transformer.transformer_blocks[1].register_forward_hook(draw)
        tiny_pipelines.run(pipe, "flux")
        handle.remove()
        assert installation.measured.num_out_of_memory == 1
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


def test_generators_among_the_inputs_go_back_too(sim: ModuleType) -> None:
    generator = torch.Generator().manual_seed(1)
    go_back = remember_draws(torch.device("sim"), ((), {"generator": [generator]}))
    first = torch.rand(3, generator=generator)
    go_back()
    assert torch.equal(torch.rand(3, generator=generator), first)


@pytest.mark.parametrize(
    ("message", "is_memory"),
    [
        ("CUDA error: out of memory", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", True),
        ("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`", False),
        ("GET was unable to find an engine to execute this computation", False),
    ],
)
def test_what_libraries_say_of_memory(message: str, is_memory: bool) -> None:
    assert is_out_of_memory(RuntimeError(message)) == is_memory


@pytest.mark.parametrize("lacks_memory", [True, False])
def test_a_convolution_without_an_engine_is_run_again_if_memory_was_refused(
    sim: ModuleType, lacks_memory: bool
) -> None:
    num_calls = 0

    def call() -> str:
        nonlocal num_calls
        num_calls += 1
        if num_calls > 1:
            return "done"
        if lacks_memory:
            sim.set_capacity(0)
            with contextlib.suppress(torch.OutOfMemoryError):  # as PyTorch does, to try cuDNN's next engine
                torch.empty(1, device="sim")
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    def run() -> object:
        return with_room(call, lambda: True, device=torch.device("sim"))

    if lacks_memory:
        assert run() == "done"
    else:
        with pytest.raises(RuntimeError, match="unable to find an engine"):
            run()


def test_autocast_keeps_no_cast_copies_of_weights(sim: ModuleType) -> None:
    enabled = []
    with tuned("flux") as (pipe, _):
        pipe.vae.decoder.conv_in.register_forward_hook(
            lambda *_: enabled.append(torch.is_autocast_cache_enabled())
        )
        tiny_pipelines.run(pipe, "flux")
    assert enabled == [False]
    assert torch.is_autocast_cache_enabled()


# ---------------------------------------------------------------------------------------------------
# The budget on a larger device


@pytest.fixture
def limits(sim: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """PyTorch's limit on a process, as CUDA has it; the fractions that were set."""
    held_before, fractions = held_bytes(), [1.0]

    def set_fraction(fraction: float, device: torch.device) -> None:
        fractions.append(fraction)
        total_bytes = sim.DEFAULT_CAPACITY_BYTES
        sim.set_capacity(total_bytes if fraction == 1 else held_before + int(fraction * total_bytes))

    monkeypatch.setattr(sim, "get_per_process_memory_fraction", lambda device: fractions[-1], raising=False)
    monkeypatch.setattr(sim, "set_per_process_memory_fraction", set_fraction, raising=False)
    return fractions


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_a_larger_call_than_planned_stays_within_the_budget(
    sim: ModuleType, limits: list[float], name: str
) -> None:
    larger = {"height": 48, "width": 48}
    want = tiny_pipelines.run(whole(name), name, **larger).cpu()
    sim.set_capacity(sim.DEFAULT_CAPACITY_BYTES)
    with tuned(name, 0.8) as (pipe, installation):
        budget_bytes = installation.plan.budget_bytes
        for num_out_of_memory in (True, False):
            assert torch.equal(tiny_pipelines.run(pipe, name, **larger).cpu(), want)
            assert installation.measured.peak_bytes <= budget_bytes
            assert bool(installation.measured.num_out_of_memory) == num_out_of_memory
    assert limits == [1.0, budget_bytes / sim.DEFAULT_CAPACITY_BYTES, 1.0, *limits[-2:]]


def test_a_limit_that_is_lower_already_stays(sim: ModuleType, limits: list[float]) -> None:
    limits.append(0.25)
    with limited(torch.device("sim", 0), sim.DEFAULT_CAPACITY_BYTES // 2):
        assert limits[-1] == 0.25
    assert limits[-1] == 0.25


def test_without_out_of_memory_there_is_no_overrun(sim: ModuleType) -> None:
    with tuned("sd15") as (pipe, installation):
        tiny_pipelines.run(pipe, "sd15")
        assert installation.overrun_bytes == {}
        assert installation.measured.num_out_of_memory == 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("for the test"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory"),
    ],
    ids=str,
)
def test_what_means_out_of_memory_is_tried_again_while_there_is_room_to_make(error: RuntimeError) -> None:
    made: list[int] = []

    def call() -> str:
        if len(made) < 2:
            raise error
        return "done"

    def make_room() -> bool:
        made.append(1)
        return True

    assert with_room(call, make_room, device=torch.device("cpu")) == "done"
    made.clear()
    with pytest.raises(type(error)) as raised:
        with_room(call, lambda: False, device=torch.device("cpu"))
    assert raised.value is error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory")], ids=str)
def test_what_means_something_else_is_raised_at_once(error: Exception) -> None:
    def call() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        with_room(call, lambda: pytest.fail("there was nothing to make room for"), device=torch.device("cpu"))
    assert raised.value is error


def test_what_is_kept_is_gone_when_a_components_inputs_are_brought_again(
    sim: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tuned("flux", 0.6) as (pipe, _):
        kept: list[int] = []

        def bring(self: Installation, inputs: object) -> object:
            kept.append(len(self._conductor._copies))
            if len(kept) == NUM_ENCODERS + 1:
                raise torch.OutOfMemoryError("for the test")
            return brought(self, inputs)

        brought = Installation._brought
        monkeypatch.setattr(Installation, "_brought", bring)
        tiny_pipelines.run(pipe, "flux")
        assert kept[NUM_ENCODERS] > 0
        assert kept[NUM_ENCODERS + 1] == 0
