"""Weights in files, staged through PyTorch's own CUDA streams and page-locked slots; what encoders returned is kept."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import vramtune
from tests import tiny_pipelines
from tests.nullcuda.tuned_pipelines import build, run, whole
from vramtune.errors import BudgetError
from vramtune.mapped_files import MappedFiles
from vramtune.units import GIB, MIB

NAME = "larger flux"
STEPS = {"num_inference_steps": 2, "output_type": "pt", **tiny_pipelines.CALL["flux"]}


def load(folder: Path, **options: Any) -> tuple[Any, vramtune.Tuned]:
    """Within little more than the smallest budget that there is a plan for."""
    options = {"call_kwargs": STEPS, "progress": False} | options
    with pytest.raises(BudgetError) as raised:
        vramtune.load(diffusers.FluxPipeline, folder, 1 / GIB, **options)
    return vramtune.load(diffusers.FluxPipeline, folder, 1.02 * raised.value.smallest_bytes / GIB, **options)


def test_from_files_calls_give_the_resident_one_s_bits_and_encoders_run_once(tmp_path: Path) -> None:
    build(NAME).save_pretrained(tmp_path)
    pipe, tuned = load(tmp_path, ram_gb=30 * MIB / GIB, cache_embeddings=True)
    with tuned:
        mapped, runs = MappedFiles(), list[None]()
        assert tuned.plan.estimate.file_bytes > 10 * MIB
        assert tuned.plan.estimate.locked_bytes <= 30 * MIB
        assert any(mapped.file_of(p) is not None for p in pipe.transformer.parameters())
        pipe.text_encoder_2.encoder.register_forward_hook(lambda *args: runs.append(None))
        for _ in range(3):
            assert torch.equal(run(pipe, NAME), whole(NAME).output)
        assert len(runs) == 1
