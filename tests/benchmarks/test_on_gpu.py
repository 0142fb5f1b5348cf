"""The benchmark for real GPUs, on the simulated one; and the weights it makes up."""

import json
import sys

import pytest
import torch
from diffusers import DiffusionPipeline

from benchmarks import on_gpu, results_file
from tests import tiny_pipelines
from vramtune import catalog
from vramtune.catalog.pipelines import empty
from vramtune.units import GIB

pytestmark = pytest.mark.slow


def run(monkeypatch, tmp_path, *arguments: str) -> tuple[list[dict], str]:
    """The rows and the table that the command writes."""
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["on_gpu", "--device", "sim", "--models", "tiny-flux", *arguments])
    on_gpu.main()
    (file,) = tmp_path.glob("on_gpu_*.json")
    return json.loads(file.read_text())["rows"], file.with_suffix(".md").read_text()


@pytest.mark.usefixtures("no_garbage")
def test_every_mode_runs_under_a_cap_and_stands_beside_its_prediction(sim, monkeypatch, tmp_path) -> None:
    cap = 0.004
    rows, text = run(monkeypatch, tmp_path, "--caps", str(cap), "--modes", *on_gpu.MODES)
    assert [row["mode"] for row in rows] == list(on_gpu.MODES.values())
    for row in rows:
        assert row["outcome"] == "ran"
        assert 0 < row["peak_bytes"] <= cap * GIB
        assert row["seconds"] == pytest.approx(row["predicted_seconds"], rel=0.2)
        assert f"| {row['mode']} | {cap:g} | ran |" in text


@pytest.mark.usefixtures("no_garbage")
def test_a_tuned_pipelines_peak_is_its_highest_stages(sim, monkeypatch, tmp_path) -> None:
    peaks = []

    def peak(device: torch.device) -> int:
        peaks.append(max_memory_reserved(device))
        return peaks[-1]

    max_memory_reserved = torch.accelerator.max_memory_reserved
    monkeypatch.setattr(torch.accelerator, "max_memory_reserved", peak)
    (row,), _ = run(monkeypatch, tmp_path, "--caps", "0.004", "--modes", "tuned")
    assert row["peak_bytes"] == max(peaks) > peaks[-1]


@pytest.mark.usefixtures("no_garbage")
def test_out_of_memory_and_no_plan_are_results_and_the_cap_is_lifted(sim, monkeypatch, tmp_path) -> None:
    rows, text = run(monkeypatch, tmp_path, "--caps", "0.0002", "--modes", "model", "tuned")
    assert [row["outcome"] for row in rows] == ["out of memory", "no plan fits"]
    assert all(row["peak_bytes"] is row["seconds"] is None for row in rows)
    assert "| out of memory |" in text
    assert sim.mem_get_info()[1] == sim.DEFAULT_CAPACITY_BYTES


@pytest.mark.usefixtures("no_garbage")
def test_a_mode_that_fails_is_a_row_and_a_cut_run_goes_on_where_it_stopped(sim, monkeypatch, tmp_path) -> None:
    def broken(*args, **kwargs) -> None:
        raise ValueError("diffusers says | no")

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionPipeline, "enable_model_cpu_offload", broken)
        rows, _ = run(monkeypatch, tmp_path, "--caps", "0.004", "--modes", "model")
    assert [row["outcome"] for row in rows] == ["failed: ValueError: diffusers says / no"]
    rows, text = run(monkeypatch, tmp_path, "--caps", "0.004", "--modes", "model", "sequential")
    assert [row["outcome"] for row in rows] == ["failed: ValueError: diffusers says / no", "ran"]
    assert "| sequential offload | 0.004 | ran |" in text
    rows, _ = run(monkeypatch, tmp_path, "--caps", "0.004", "--modes", "model", "--again")
    assert [row["outcome"] for row in rows] == ["ran"]


def test_made_up_weights_keep_dtype_ties_and_positions() -> None:
    clip = catalog.load("sdxl").text_encoder
    on_gpu.materialise(clip)
    assert {parameter.dtype for parameter in clip.parameters()} == {torch.float16}
    assert clip.embeddings.position_ids.tolist() == [list(range(77))]
    assert clip(torch.zeros(1, 77, dtype=torch.long)).last_hidden_state.isfinite().all()
    t5 = empty(tiny_pipelines.t5, dtype=torch.bfloat16)
    on_gpu.materialise(t5)
    assert t5.encoder.embed_tokens.weight is t5.shared.weight
    assert all(0 < p.float().std() < 0.1 for p in t5.parameters() if p.dim() > 1)
