"""Pipelines whose weights stay in their files."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import pytest
import torch

import vramtune
from tests import tiny_pipelines
from vramtune.errors import BudgetError, FileError, UsageError
from vramtune.mapped_files import MappedFiles
from vramtune.units import GIB


@pytest.fixture
def folder(flux_in_files: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    for file in (file for file in flux_in_files.rglob("*") if file.is_file()):
        target = tmp_path / file.relative_to(flux_in_files)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return tmp_path


def load(folder: Path, **options: Any) -> tuple[Any, vramtune.Tuned]:
    """Within little more than the smallest budget that there is a plan for."""
    steps = {"num_inference_steps": 2, "output_type": "pt"} | tiny_pipelines.CALL["flux"]
    options = {"device": "sim", "progress": False, "call_kwargs": steps} | options
    with pytest.raises(BudgetError) as raised:
        vramtune.load(diffusers.FluxPipeline, folder, 1 / GIB, **options)
    return vramtune.load(diffusers.FluxPipeline, folder, 1.02 * raised.value.smallest_bytes / GIB, **options)


def weights(pipe: Any) -> list[torch.Tensor]:
    modules = [m for m in pipe.components.values() if isinstance(m, torch.nn.Module)]
    return [p for m in modules for p in m.parameters()]


def in_files(pipe: Any) -> int:
    mapped = MappedFiles()
    return sum(p.nbytes for p in weights(pipe) if p.is_cpu and mapped.file_of(p) is not None)


def all_bytes(pipe: Any) -> int:
    return sum(p.nbytes for p in weights(pipe))


def test_with_little_memory_weights_stay_in_their_files_and_the_bits_are_the_same(
    sim: ModuleType, no_garbage: None, flux_in_files: Path
) -> None:
    want = tiny_pipelines.run(tiny_pipelines.build("flux").to("sim"), "flux").cpu()
    before = {file: file.read_bytes() for file in flux_in_files.rglob("*.safetensors")}
    assert len(before) > 5, "in shards"
    ram_bytes = 300_000
    pipe, tuned = load(flux_in_files, ram_gb=ram_bytes / GIB)
    estimate = tuned.plan.estimate
    assert estimate.host_bytes <= ram_bytes < all_bytes(pipe)
    assert in_files(pipe) > 0
    held = sum(p.nbytes for p in weights(pipe) if p.is_cpu) - in_files(pipe)
    assert held <= estimate.host_bytes
    for _ in range(2):
        assert torch.equal(tiny_pipelines.run(pipe, "flux").cpu(), want)
    tuned.remove()
    assert {file: file.read_bytes() for file in before} == before


def test_an_edit_of_a_weight_in_a_file_counts_and_the_file_stays_as_it_is(
    sim: ModuleType, no_garbage: None, folder: Path
) -> None:
    before = {file: file.read_bytes() for file in folder.rglob("*.safetensors")}
    want = tiny_pipelines.build("flux")
    pipe, tuned = load(folder, ram_gb=300_000 / GIB)
    with tuned, torch.no_grad():
        for edited in (want, pipe):
            for parameter in edited.transformer.parameters():
                parameter.mul_(1.5)
        assert torch.equal(tiny_pipelines.run(pipe, "flux").cpu(), tiny_pipelines.run(want.to("sim"), "flux").cpu())
    assert {file: file.read_bytes() for file in before} == before


def test_what_was_read_of_files_is_let_go_after_its_stage(
    sim: ModuleType, no_garbage: None, flux_in_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = list[set[str]]()
    monkeypatch.setattr(MappedFiles, "let_go", lambda self, views: let_go.append(names_of(self, views)))
    pipe, tuned = load(flux_in_files, ram_gb=100_000 / GIB)
    with tuned:
        assert set().union(*let_go) >= {"text_encoder_2", "transformer"}
        let_go.clear()
        seen = list[int]()
        tiny_pipelines.run(pipe, "flux", callback_on_step_end=lambda *args: seen.append(len(let_go)) or {})
    stages = [name for name in ("text_encoder", "text_encoder_2", "transformer", "vae") if {name} in let_go]
    assert let_go == [{name} for name in stages], "each once, in order"
    assert set(seen) == {stages.index("transformer")}, "not while it runs"


def names_of(mapped: MappedFiles, views: list[torch.Tensor]) -> set[str]:
    files = {mapped.file_of(view) for view in views}
    return {file.parent.name for file in files if file is not None}


def test_without_a_dtype_each_component_has_that_of_its_files(
    sim: ModuleType, no_garbage: None, tmp_path: Path
) -> None:
    tiny_pipelines.build("flux").to(torch.bfloat16).save_pretrained(tmp_path)
    pipe = vramtune.load(diffusers.FluxPipeline, tmp_path, 1, ram_gb=1, device="sim", progress=False)[0]
    assert {p.dtype for p in weights(pipe)} == {torch.bfloat16}


def test_of_another_dtype_they_are_cast_into_memory(sim: ModuleType, no_garbage: None, flux_in_files: Path) -> None:
    pipe, tuned = load(flux_in_files, ram_gb=1, torch_dtype=torch.bfloat16)
    assert {p.dtype for p in weights(pipe)} == {torch.bfloat16}
    assert tuned.plan.estimate.file_bytes == 0


def test_a_shard_that_is_missing_is_named(sim: ModuleType, folder: Path) -> None:
    missing = sorted(folder.glob("transformer/*.safetensors"))[0]
    missing.unlink()
    with pytest.raises(FileError, match=f"{missing.name}' is missing"):
        load(folder)


def test_a_file_that_is_cut_off_is_named(sim: ModuleType, folder: Path) -> None:
    file = sorted(folder.glob("vae/*.safetensors"))[0]
    os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(FileError, match=f"{file.name}' has .* cut off"):
        load(folder)


def test_a_folder_that_is_not_there_is_refused(sim: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        vramtune.load(diffusers.FluxPipeline, tmp_path / "none", 8, device="sim")


def test_what_has_no_from_pretrained_is_refused(sim: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="by its class"):
        vramtune.load("FluxPipeline", tmp_path, 8, device="sim")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": torch.bfloat16}, "Unknown argument of load 'dtype'. Did you mean: .*torch_dtype"),
        ({"torch_dtype": "bfloat16"}, "`torch_dtype` is a dtype, such as torch.bfloat16.*got 'bfloat16'"),
        ({"torch_dtype": {"vae": "auto"}}, "`torch_dtype` is a dtype"),
        ({"allow": "nonsense"}, "Unknown permission 'nonsense'"),
        ({"gpu_id": 7, "device": "sim:0"}, "gpu_id"),
        ({"ram_gb": "much"}, "ram_gb"),
    ],
)
def test_what_tuning_would_refuse_is_refused_before_anything_is_loaded(
    sim: ModuleType, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):  # there is nothing to load in that folder
        vramtune.load(diffusers.FluxPipeline, tmp_path, 1, **{"device": "sim", **options})


def test_a_file_that_is_changed_under_way_stops_the_next_call_and_one_that_is_removed_does_not(
    sim: ModuleType, no_garbage: None, folder: Path
) -> None:
    pipe, tuned = load(folder, ram_gb=300_000 / GIB)
    with tuned:
        want = tiny_pipelines.run(pipe, "flux").cpu()
        used = sorted({path for p in weights(pipe) if (path := MappedFiles().file_of(p)) is not None})
        used[0].unlink()
        assert torch.equal(tiny_pipelines.run(pipe, "flux").cpu(), want)
        os.truncate(used[1], 100)
        with pytest.raises(FileError, match="was changed since it was loaded"):
            tiny_pipelines.run(pipe, "flux")
        gc.collect()


KILLED = """
import os, signal, sys
import diffusers
from tests import tiny_pipelines
from tests.simgpu import load
load()
import vramtune
from vramtune.offload import staging

fill, fills = staging.fill, 0

def killed(flat, part):
    global fills
    fills += 1
    if fills > 20:
        os.kill(os.getpid(), signal.SIGKILL)
    fill(flat, part)

staging.fill = killed
steps = {"num_inference_steps": 2, "output_type": "pt"} | tiny_pipelines.CALL["flux"]
pipe, tuned = vramtune.load(
    diffusers.FluxPipeline, sys.argv[1], float(sys.argv[2]), ram_gb=float(sys.argv[3]), device="sim", call_kwargs=steps
)
tiny_pipelines.run(pipe, "flux")
"""


@pytest.mark.slow
def test_after_a_kill_while_files_are_read_they_are_as_they_were_and_the_next_start_runs(
    sim: ModuleType, no_garbage: None, folder: Path
) -> None:
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.rglob("*") if file.is_file()}
    ram_gb = 300_000 / GIB
    pipe, tuned = load(folder, ram_gb=ram_gb)
    with tuned:
        want = tiny_pipelines.run(pipe, "flux").cpu()
    vram_gb = tuned.plan.asked_bytes / GIB
    command = [sys.executable, "-c", KILLED, str(folder), str(vram_gb), str(ram_gb)]
    killed = subprocess.run(command, cwd=Path(__file__).parent.parent, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in folder.rglob("*") if f.is_file()} == before
    pipe, tuned = load(folder, ram_gb=ram_gb)
    with tuned:
        assert torch.equal(tiny_pipelines.run(pipe, "flux").cpu(), want)
