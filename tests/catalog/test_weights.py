"""Where a pipeline's weights may come from, and stay: folders, variants, the Hub's cache, files of components."""

import os
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny_pipelines
from tests.catalog import one_file
from vramtune.catalog.weights import load_mapped
from vramtune.contract import modules_of
from vramtune.errors import FileError, UsageError
from vramtune.mapped_files import MappedFiles


@pytest.fixture(scope="module")
def built() -> Any:
    return tiny_pipelines.build("flux")


@pytest.fixture(scope="module")
def saved(built: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux")
    built.save_pretrained(folder, max_shard_size="200KB")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(saved, tmp_path / "pipe"))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, without a network behind it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hub"


def load(source: str | Path, **options: Any) -> Any:
    return load_mapped(diffusers.FluxPipeline, source, **options)


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    return {f"{name}.{path}": p for name, m in modules_of(pipe).items() for path, p in m.named_parameters()}


def not_in_files(pipe: Any) -> set[str]:
    mapped = MappedFiles()
    return {name for name, weight in weights(pipe).items() if mapped.file_of(weight) is None}


def assert_equal(pipe: Any, want: Any) -> None:
    found, wanted = weights(pipe), weights(want)
    assert found.keys() == wanted.keys()
    assert {name for name in found if found[name].dtype != wanted[name].dtype} == set()
    assert {name for name in found if not torch.equal(found[name], wanted[name])} == set()


def in_cache(folder: Path, hub_cache: Path, repo_id: str) -> Path:
    """A folder as the Hub's client keeps it: a snapshot of links into blobs. Returns the snapshot."""
    repo = hub_cache / f"models--{repo_id.replace('/', '--')}"
    snapshot = repo / "snapshots" / "0123"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0123")
    (repo / "blobs").mkdir()
    for number, file in enumerate(sorted(file for file in folder.rglob("*") if file.is_file())):
        blob, link = repo / "blobs" / str(number), snapshot / file.relative_to(folder)
        shutil.copyfile(file, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_of_a_hub_id_the_files_in_the_cache_are_mapped(built: Any, saved: Path, hub_cache: Path) -> None:
    in_cache(saved, hub_cache, "some-org/tiny-flux")
    pipe = load("some-org/tiny-flux")
    assert_equal(pipe, built)
    assert not_in_files(pipe) == set()


def test_a_hub_id_that_is_not_in_the_cache_is_refused_with_what_to_do(hub_cache: Path) -> None:
    with pytest.raises(UsageError, match=r"hf download some-org/other"):
        load("some-org/other")


def test_a_snapshot_without_weights_is_refused(saved: Path, hub_cache: Path) -> None:
    snapshot = in_cache(saved, hub_cache, "some-org/tiny-flux")
    for file in snapshot.glob("vae/*.safetensors"):
        file.unlink()
    with pytest.raises(FileError, match="vae' holds no weights that can stay in their file"):
        load("some-org/tiny-flux")


def test_what_can_be_no_hub_id_is_refused(hub_cache: Path) -> None:
    with pytest.raises(UsageError, match="is no folder, no file and no Hub id"):
        load("a/b/c d")


def test_a_variant_s_files_decide_the_dtype_and_components_without_it_have_their_own(tmp_path: Path) -> None:
    half = tiny_pipelines.build("flux").to(torch.bfloat16)
    tiny_pipelines.build("flux").save_pretrained(tmp_path)
    half.transformer.save_pretrained(tmp_path / "transformer", variant="bf16", max_shard_size="200KB")
    pipe = load(tmp_path, variant="bf16")
    assert pipe.transformer.dtype == torch.bfloat16
    assert pipe.vae.dtype == torch.float32
    assert not_in_files(pipe) == set()
    assert load(tmp_path).transformer.dtype == torch.float32


def test_shards_of_a_variant_that_was_not_asked_for_may_be_missing(built: Any, folder: Path) -> None:
    built.transformer.save_pretrained(folder / "transformer", variant="fp32", max_shard_size="200KB")
    next(iter(folder.glob("transformer/*.fp32-*.safetensors"))).unlink()
    assert_equal(load(folder), built)
    with pytest.raises(FileError, match="is missing"):
        load(folder, variant="fp32")


def test_an_unknown_variant_is_refused_with_those_there_are(saved: Path) -> None:
    with pytest.raises(UsageError, match="variants found: none"):
        load(saved, variant="fp16")


def test_a_component_from_a_file_of_its_own_stays_in_it(built: Any, folder: Path) -> None:
    file = folder.parent / "transformer.safetensors"
    save_file(built.transformer.state_dict(), file)
    shutil.rmtree(folder / "transformer")
    (folder / "transformer").mkdir()
    built.transformer.save_config(folder / "transformer")  # the rest was not downloaded
    pipe = load(folder, files={"transformer": file})
    assert_equal(pipe, built)
    assert not_in_files(pipe) == set()
    assert MappedFiles().file_of(next(pipe.transformer.parameters())) == file


def test_a_file_of_a_component_that_is_missing_cut_off_or_of_another_kind_is_refused(built: Any, folder: Path) -> None:
    file = folder.parent / "transformer.safetensors"
    with pytest.raises(FileError, match="there is no file"):
        load(folder, files={"transformer": file})
    save_file(built.transformer.state_dict(), file)
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(FileError, match="cut off or was changed"):
        load(folder, files={"transformer": file})
    with pytest.raises(UsageError, match="stay in safetensors files"):
        load(folder, files={"transformer": folder / "model_index.json"})
    with pytest.raises(UsageError, match="does not have: unet"):
        load(folder, files={"unet": file})
    with pytest.raises(UsageError, match="not loaded from a single file"):
        load(folder, files={"text_encoder": file})


def test_weights_of_another_model_are_refused(built: Any, folder: Path) -> None:
    file = folder.parent / "transformer.safetensors"
    save_file({"x_embedder.weight": torch.zeros(3, 3)}, file)
    with pytest.raises(UsageError, match=r"Cannot load .*transformer\.safetensors"):
        load(folder, files={"transformer": file})


@pytest.fixture(scope="module")
def single_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """A Stable Diffusion, the file with all its weights, and a folder with its configurations."""
    folder, pipe = tmp_path_factory.mktemp("sd"), one_file.build()
    pipe.save_pretrained(folder / "pipe")
    for file in (folder / "pipe").rglob("*.safetensors"):
        file.unlink()
    one_file.write(pipe, folder / "sd.safetensors")
    return pipe, folder / "sd.safetensors", folder / "pipe"


def test_all_components_of_a_single_file_stay_in_it(single_file: tuple[Any, Path, Path]) -> None:
    built, file, config = single_file
    pipe = load_mapped(diffusers.StableDiffusionPipeline, file, config=config)
    assert_equal(pipe, built)
    assert {MappedFiles().file_of(weight) for weight in weights(pipe).values()} == {file}


def test_a_single_file_that_is_cut_off_is_refused(single_file: tuple[Any, Path, Path], tmp_path: Path) -> None:
    _, file, config = single_file
    cut = shutil.copy(file, tmp_path)
    os.truncate(cut, file.stat().st_size - 1)
    with pytest.raises(FileError, match="cut off or was changed"):
        load_mapped(diffusers.StableDiffusionPipeline, cut, config=config)


def test_a_single_file_that_lacks_weights_is_refused(single_file: tuple[Any, Path, Path], tmp_path: Path) -> None:
    _, file, config = single_file
    lacking = {name: weight for name, weight in load_file(file).items() if name != "model.diffusion_model.out.2.bias"}
    save_file(lacking, tmp_path / "lacking.safetensors")
    with pytest.raises(FileError, match=r"lacking\.safetensors' lacks weights of its model"):
        load_mapped(diffusers.StableDiffusionPipeline, tmp_path / "lacking.safetensors", config=config)


def test_what_goes_with_a_folder_or_a_file_only_is_refused_with_the_other(
    single_file: tuple[Any, Path, Path], saved: Path
) -> None:
    _, file, config = single_file
    for options in ({"variant": "fp16"}, {"files": {"unet": file}}, {"cast_folder": config}):
        with pytest.raises(UsageError, match="go with a folder of components"):
            load_mapped(diffusers.StableDiffusionPipeline, file, config=config, **options)
    with pytest.raises(UsageError, match="one dtype for all components"):
        load_mapped(diffusers.StableDiffusionPipeline, file, config=config, torch_dtype={"unet": torch.float16})
    with pytest.raises(UsageError, match="`config` goes with a single file"):
        load(saved, config=config)
