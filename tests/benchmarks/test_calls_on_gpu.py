"""What of measuring components' calls needs no GPU: which are measured, what is kept of them, and how far predictions are off."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import profile as torch_profile

from benchmarks import against_calls, calls_on_gpu, results_file
from benchmarks.calls_on_gpu import append, compact, lines_of, operations, watch
from tests.profiles import MIB, activity, component, device, profile, stage


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward(x) + 1


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The outputs of calls that were measured; what they take stands in for a GPU's."""
    outputs = []

    def measure(call: Any) -> tuple[Any, dict[str, Any]]:
        outputs.append(call())
        return outputs[-1], {"seconds": [0.5]}

    monkeypatch.setattr(calls_on_gpu, "measured", measure)
    return outputs


def test_each_different_call_is_measured_once_and_answered_from_then_on(measured: list[Any]) -> None:
    found: list[dict[str, Any]] = []
    pipe = SimpleNamespace(components={"part": Part(), "scheduler": object()})
    watch(pipe, found.append)
    part = pipe.components["part"]
    first = part(torch.ones(2, 4))
    assert part(torch.zeros(2, 4)) is first is measured[0]
    part(torch.ones(3, 4))
    assert [(call["call"], call["inputs"]) for call in found] == [
        ("part.forward", (((2, 4), "torch.float32"),)),
        ("part.forward", (((3, 4), "torch.float32"),)),
    ]
    assert [call["seconds"] for call in found] == [[0.5], [0.5]]


def test_a_method_that_calls_another_is_one_call(measured: list[Any]) -> None:
    found: list[dict[str, Any]] = []
    pipe = SimpleNamespace(components={"part": Part()})
    watch(pipe, found.append)
    pipe.components["part"].encode(torch.ones(2, 4))
    assert [call["call"] for call in found] == ["part.encode"]
    assert len(measured) == 1


def test_lines_are_added_to_a_file_that_is_whole_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "calls.jsonl.gz"
    assert list(lines_of(path)) == []
    append(path, {"model": "sdxl", "call": "vae.decode"})

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            append(path, {"model": "sdxl", "call": "unet.forward"})
    append(path, {"model": "sd15", "call": None})
    assert [(line["model"], line["call"]) for line in lines_of(path)] == [("sdxl", "vae.decode"), ("sd15", None)]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_run_goes_on_with_the_models_that_have_no_lines_and_past_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(model: str, on: torch.device, steps: int, path: Path) -> None:
        asked.append((model, steps))
        if model == "sdxl":
            raise RuntimeError("10.0 GiB of weights are more than is free\nand more")
        append(path, {"model": model, "call": "vae.decode"})

    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    monkeypatch.setattr(calls_on_gpu, "measure", measure)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(sys, "argv", ["calls_on_gpu", "sd15", "sdxl", "--steps", "3"])
    calls_on_gpu.main()
    monkeypatch.setattr(sys, "argv", ["calls_on_gpu", "sd15", "sdxl", "flux.1-dev"])
    calls_on_gpu.main()
    assert asked == [("sd15", 3), ("sdxl", 3), ("flux.1-dev", 2)]
    (path,) = tmp_path.glob("calls_nvidia_h100_80gb_*.jsonl.gz")
    lines = list(lines_of(path))
    assert [line["model"] for line in lines] == ["sd15", "sdxl", "flux.1-dev"]
    assert lines[1]["outcome"] == "failed: RuntimeError: 10.0 GiB of weights are more than is free"


def test_addresses_of_allocator_events_become_numbers_in_the_order_of_their_first_use() -> None:
    events = [
        {"action": "alloc", "addr": 0x7F00, "size": 512},
        {"action": "snapshot"},
        {"action": "alloc", "addr": 0x9000, "size": 1024},
        {"action": "free_completed", "addr": 0x7F00, "size": 512},
    ]
    assert compact(events) == [["alloc", 0, 512], ["alloc", 1, 1024], ["free_completed", 0, 512]]


def test_operations_are_counted_by_name_and_shapes() -> None:
    left = torch.ones(8, 4)
    with torch_profile(record_shapes=True) as profiled:
        for right in (torch.ones(4, 2), torch.ones(4, 2), torch.ones(4, 3)):
            left @ right
    products = [row for row in operations(profiled) if row["name"] == "aten::mm"]
    assert sorted((row["shapes"], row["count"]) for row in products) == [([[8, 4], [4, 2]], 2), ([[8, 4], [4, 3]], 1)]
    assert all(row["host_us"] > 0 and row["device_us"] == 0 for row in products)
    json.dumps(products)


# ---------------------------------------------------------------------------------------------------
# Predicted beside them


def tiny_call() -> Any:
    encoder, model = component("text_encoder", [MIB]), component("transformer", [MIB, MIB])
    loop = stage("transformer", 20, activity(model, [0.25, 0.5]), activity(model, [9.0, 9.0]))
    return profile(device(), [encoder, model], [stage("text_encoder", 1, activity(encoder, [0.1])), loop])


def test_a_calls_seconds_are_those_of_its_first_activity() -> None:
    assert against_calls.call_seconds(tiny_call(), "transformer.forward") == 0.75
    assert against_calls.call_seconds(tiny_call(), "transformer.decode") is None
    assert against_calls.call_seconds(tiny_call(), "vae.forward") is None


def test_the_summary_is_of_all_calls_and_of_the_long_ones() -> None:
    errors = [(-0.3, 0.001), (0.1, 0.002), (0.2, 0.05), (-0.1, 2.0), (-0.2, 3.0)]
    assert against_calls.summary(errors) == [
        "- All: 5 calls, median absolute error 20%, median error -10%.",
        "- Of 50 ms and more: 3 calls, median absolute error 20%, median error -10%.",
    ]
    assert against_calls.summary(errors[:2]) == ["- All: 2 calls, median absolute error 20%, median error -10%."]
    assert against_calls.summary([]) == []


def test_the_fastest_of_each_call_stands_beside_its_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "calls_gpu.jsonl.gz"
    times = {"seconds": [1.2, 1.0, 1.1], "host_seconds": [0.3, 0.2, 0.4]}
    append(path, {"model": "tiny", "call": "transformer.forward", **times})
    append(path, {"model": "tiny", "call": "safety_checker.forward", **times})
    append(path, {"model": "large", "call": None, "outcome": "failed: RuntimeError"})
    asked = []
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    monkeypatch.setattr(against_calls, "predicted", lambda model, gpu: asked.append((model, gpu)) or tiny_call())
    monkeypatch.setattr(sys, "argv", ["against_calls", str(path), "--gpu", "RTX 4060"])
    against_calls.main()
    (written,) = tmp_path.glob("against_calls_*.md")
    text = written.read_text()
    assert asked == [("tiny", "RTX 4060")]
    assert "| tiny | transformer.forward | 1.0000 | 0.2000 | 0.7500 | -25% |" in text
    assert text.count("| tiny |") == 1
    assert "- All: 1 calls, median absolute error 25%, median error -25%." in text


def test_without_a_file_of_calls_the_command_says_how_one_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(against_calls, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["against_calls"])
    with pytest.raises(SystemExit):
        against_calls.main()
    assert "run `python -m benchmarks.calls_on_gpu` on a GPU" in capsys.readouterr().err
