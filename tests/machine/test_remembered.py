"""What a GPU has shown is remembered from process to process, and later predictions rest on it."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import vramtune
from tests import tiny_pipelines
from tests.cli.cli_runner import run as run_cli
from vramtune.errors import FileError
from vramtune.machine import doctor, live, remembered
from vramtune.machine.gpus import find_gpu
from vramtune.machine.remembered import Identity, corrected
from vramtune.offload.settings import are_planned
from vramtune.paths import cache_folder
from vramtune.schema import Device, Spread, Workload

CARD = Identity(gpu="GPU-1", driver="570.1", torch="2.13")
CALL = {"num_inference_steps": 4, "output_type": "pt", **tiny_pipelines.CALL["flux"]}


@pytest.fixture
def known_card(slow: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The driver says which GPU the simulated one is; nothing was measured yet."""
    monkeypatch.setattr(remembered, "identity", lambda device: CARD)
    yield
    live.probe.cache_clear()


def sim_device() -> torch.device:
    return torch.device("sim", 0)


def as_a_new_process_sees_it() -> Device:
    live.probe.cache_clear()
    return live.live_device(sim_device())


def times_predicted() -> list[float]:
    known = remembered.recall(sim_device())
    assert known is not None
    return list(known.times_predicted.values())


# ---------------------------------------------------------------------------------------------------
# Rates


def test_another_process_does_not_measure_again(known_card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = live.live_device(sim_device())
    monkeypatch.setattr(live, "measure_rates", lambda device: pytest.fail("it was measured"))
    assert as_a_new_process_sees_it() == measured


def test_another_driver_or_pytorch_is_measured(known_card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    live.live_device(sim_device())
    for other in (replace(CARD, driver="580.2"), replace(CARD, torch="2.14"), replace(CARD, gpu="GPU-2")):
        monkeypatch.setattr(remembered, "identity", lambda device, other=other: other)
        assert remembered.recall(sim_device()) is None


def test_a_gpu_that_the_driver_does_not_name_is_measured_by_each_process(slow: ModuleType) -> None:
    live.live_device(sim_device())
    assert remembered.recall(sim_device()) is None
    assert not cache_folder().exists()


def test_a_damaged_file_is_said_and_measured_anew(known_card: None, caplog: pytest.LogCaptureFixture) -> None:
    measured = live.live_device(sim_device())
    CARD.path.write_bytes(CARD.path.read_bytes()[:-40])
    with caplog.at_level(logging.WARNING, logger="vramtune"):
        assert as_a_new_process_sees_it().pinned_copy_bytes_per_second == pytest.approx(
            measured.pinned_copy_bytes_per_second, rel=0.01
        )
    assert "What was measured here before is lost" in caplog.text
    assert remembered.recall(sim_device()) is not None


def test_where_nothing_can_be_written_every_process_measures(
    known_card: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VRAMTUNE_CACHE", str(tmp_path / "file" / "cache"))
    assert live.live_device(sim_device()).source == "measured"
    assert remembered.recall(sim_device()) is None


def test_a_folder_that_cannot_be_looked_into_is_said_and_costs_a_measurement(
    known_card: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VRAMTUNE_CACHE", "/" + 300 * "x")  # a longer name than files may have
    with caplog.at_level(logging.WARNING, logger="vramtune"):
        assert live.live_device(sim_device()).source == "measured"
    assert "What was measured here before is lost" in caplog.text


def test_what_cannot_be_forgotten_is_an_error_of_our_own(known_card: None) -> None:
    (cache_folder() / "gpu-folder.json").mkdir(parents=True)
    with pytest.raises(FileError, match=r"Cannot delete .*gpu-folder\.json"):
        remembered.forget()


@pytest.mark.parametrize("times", [0.0, 1e-3, 1e3, float("inf"), float("nan")])
def test_times_that_no_card_takes_are_not_kept(known_card: None, times: float) -> None:
    live.live_device(sim_device())
    remembered.remember_call(sim_device(), "a call", times)
    assert times_predicted() == []


def test_the_doctor_measures_anew_and_keeps_what_calls_took(known_card: None, slow: ModuleType) -> None:
    before = live.live_device(sim_device())
    remembered.remember_call(sim_device(), "a call", 1.5)
    slow.set_rates(pinned_copy_bytes_per_second=50e6)
    found = doctor.examine().accelerator
    assert found is not None
    assert found.device is not None
    assert found.device.pinned_copy_bytes_per_second == pytest.approx(2 * before.pinned_copy_bytes_per_second, rel=0.03)
    assert found.device.times_predicted == 1.5
    assert found.remembered_path == str(CARD.path)
    assert as_a_new_process_sees_it().pinned_copy_bytes_per_second == found.device.pinned_copy_bytes_per_second


def test_the_doctor_shows_what_is_remembered_and_forgets_it(known_card: None) -> None:
    live.live_device(sim_device())
    remembered.remember_call(sim_device(), "a call", 1.5)
    assert "1 call took 1.50 to 1.50 times" in " ".join(run_cli("doctor").stdout.split())
    shown = " ".join(run_cli("doctor", "--forget").stdout.split())
    assert "these rates, measured on" in shown
    assert "1 call took" not in shown
    assert len(list(cache_folder().iterdir())) == 1  # measured anew


# ---------------------------------------------------------------------------------------------------
# What calls took


def autotuned() -> tuple[Any, vramtune.Tuned]:
    pipe = tiny_pipelines.larger_flux()
    return pipe, vramtune.autotune(pipe, call_kwargs=CALL, device="sim", progress=False)


def draw(pipe: Any, **call_kwargs: Any) -> None:
    pipe("a cat", generator=torch.Generator("cpu").manual_seed(0), **CALL | call_kwargs)
    torch.accelerator.synchronize()  # as whoever looks at the image does


def test_calls_that_take_as_long_as_predicted_change_nothing(known_card: None) -> None:
    pipe, tuned = autotuned()
    with tuned:
        for _ in range(3):
            draw(pipe)
    (times,) = times_predicted()
    assert times == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_a_card_slower_than_its_rates_is_predicted_so_the_next_time(known_card: None) -> None:
    live.live_device(sim_device())
    known = remembered.recall(sim_device())
    assert known is not None
    rates = {dtype: 3 * rate for dtype, rate in known.facts.flops_per_second.items()}
    wrong = replace(
        known.facts, flops_per_second=rates, memory_bytes_per_second=3 * known.facts.memory_bytes_per_second
    )
    remembered.remember(sim_device(), wrong)
    live.probe.cache_clear()
    for _ in range(2):  # the second plan rests on what the calls of the first took
        pipe, tuned = autotuned()
        with tuned:
            for _ in range(3):
                draw(pipe)
            measured = tuned.measured
            assert measured is not None
            off = tuned.plan.estimate.seconds / measured.seconds
    assert times_predicted()[0] > 1.5
    assert off == pytest.approx(1, abs=0.05)


def test_calls_that_say_nothing_are_not_kept(known_card: None) -> None:
    pipe, tuned = autotuned()
    with tuned:
        draw(pipe)  # the first of a process is slower on a real GPU
        draw(pipe, num_inference_steps=2)
        draw(pipe, callback_on_step_end=lambda pipe, step, time, tensors: tensors)
        assert times_predicted() == []
        draw(pipe)
    assert len(times_predicted()) == 1


@pytest.mark.parametrize(
    ("kwargs", "is_planned"),
    [
        ({"prompt": "a dog", "height": 32, "sizes": (1, 2)}, True),
        ({"height": 32, "sizes": [1, 2], "generator": torch.Generator()}, True),
        ({"prompt": ["a dog", "a cat"], "height": 32, "sizes": (1, 2)}, False),
        ({"height": 64, "sizes": (1, 2)}, False),
        ({"height": 32}, False),
        ({"height": 32, "sizes": (1, 2), "image": torch.zeros(1)}, False),
        ({"height": 32, "sizes": (1, 2), "width": 32}, False),
    ],
)
def test_other_words_are_the_same_call_other_figures_are_not(kwargs: dict[str, Any], is_planned: bool) -> None:
    planned = Workload(call_kwargs={"prompt": "a cat", "height": 32, "sizes": [1, 2], "latents": None})
    assert are_planned(planned, (), kwargs) is is_planned
    assert are_planned(planned, ("a dog",), kwargs) is is_planned
    assert not are_planned(planned, (torch.zeros(1),), kwargs)


def test_several_calls_say_how_sure_predictions_are() -> None:
    device = find_gpu("RTX 4060")
    assert corrected(device, {}) == device
    one = corrected(device, {"a": 1.3})
    assert (one.times_predicted, one.spreads) == (1.3, device.spreads)
    agreeing = corrected(device, {"a": 1.0, "b": 1.0, "c": 1.01})
    assert agreeing.spreads.gpu == Spread(low=0.9, high=1.1)
    apart = corrected(device, {"a": 0.5, "b": 1.0, "c": 2.0})
    assert (apart.times_predicted, apart.spreads.gpu) == (1.0, Spread(low=0.5, high=2.0))


def test_the_oldest_calls_are_forgotten_first(known_card: None) -> None:
    live.live_device(sim_device())
    for number in range(remembered.MOST_CALLS + 2):
        remembered.remember_call(sim_device(), f"call {number}", 1.0)
    known = remembered.recall(sim_device())
    assert known is not None
    assert list(known.times_predicted) == [f"call {number}" for number in range(2, remembered.MOST_CALLS + 2)]
