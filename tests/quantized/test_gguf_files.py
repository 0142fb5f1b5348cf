"""A component that stays in its GGUF file: mapped, run under a plan with the bits of diffusers' own load, refused if cut off."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel, GGUFQuantizationConfig

import vramtune
from tests import tiny_pipelines
from tests.quantized import pipelines as quantized_pipelines
from tests.quantized.pipelines import CALL
from vramtune.catalog.gguf_file import mapped_gguf
from vramtune.errors import BudgetError, FileError, UsageError
from vramtune.mapped_files import MappedFiles
from vramtune.units import GIB

pytestmark = pytest.mark.quantized


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "transformer.gguf"
    quantized_pipelines.write_gguf(quantized_pipelines.plain().transformer, path)
    return path


def loaded(folder: Path, file: Path, **options: Any) -> tuple[Any, vramtune.Tuned]:
    """Within little more than the smallest budget that there is a plan for."""
    options = {"device": "sim", "progress": False, "call_kwargs": CALL, "files": {"transformer": file}} | options
    with pytest.raises(BudgetError) as raised:
        vramtune.load(FluxPipeline, folder, 1 / GIB, **options)
    return vramtune.load(FluxPipeline, folder, 1.02 * raised.value.smallest_bytes / GIB, **options)


def test_it_stays_in_its_file_and_gives_the_bits_of_diffusers_own_load(
    sim: ModuleType, no_garbage: None, folder: Path, file: Path
) -> None:
    quantized_pipelines.run_on_sim()
    before = file.read_bytes()
    theirs = FluxTransformer2DModel.from_single_file(
        str(file),
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.bfloat16),
        dtype=torch.bfloat16,
        config=str(folder),
        subfolder="transformer",
    )
    plain = FluxPipeline.from_pretrained(folder, transformer=theirs, dtype=torch.bfloat16).to("sim")
    want = tiny_pipelines.run(plain, "flux").cpu()
    pipe, tuned = loaded(folder, file, ram_gb=1_000_000 / GIB)
    mapped = MappedFiles()
    in_file = [p for p in pipe.transformer.parameters() if p.is_cpu and mapped.file_of(p.data) == file]
    assert in_file
    assert all(p.quant_type == gguf.GGMLQuantizationType.Q8_0 for p in in_file)
    assert tuned.plan.estimate.file_bytes > 0
    for _ in range(2):
        assert torch.equal(tiny_pipelines.run(pipe, "flux").cpu(), want)
    tuned.remove()
    with torch.no_grad():
        in_file[0].data.add_(1)
    assert file.read_bytes() == before


def test_a_file_that_is_cut_off_or_of_something_else_is_refused(file: Path) -> None:
    size = file.stat().st_size
    for kept_bytes in (size - 100, size // 2, 30, 0):
        os.truncate(file, kept_bytes)
        with pytest.raises(FileError, match="cut off"):
            mapped_gguf(file)
    file.write_bytes(bytes(1000))
    with pytest.raises(FileError, match="no GGUF file"):
        mapped_gguf(file)


def test_a_type_that_diffusers_does_not_read_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "iq.gguf", "flux")
    blocks, kind = quantized_pipelines._random_blocks((4, 256), gguf.GGMLQuantizationType.TQ2_0), "TQ2_0"
    writer.add_tensor("weight", blocks, raw_dtype=gguf.GGMLQuantizationType.TQ2_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UsageError, match=f"of the type {kind}, which diffusers does not read"):
        mapped_gguf(tmp_path / "iq.gguf")
