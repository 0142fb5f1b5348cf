import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

from tests.tiny_pipelines import build
from vramtune import catalog
from vramtune.catalog.dtypes import header_counts
from vramtune.errors import UsageError

REPO_ID = "some-org/tiny-model"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A pipeline on a stand-in for the Hub, and the cache that `snapshot_download` fills: no network."""
    remote, cache = tmp_path / "remote", tmp_path / "cache"
    pipe = build("sd15")
    pipe.unet.to(torch.bfloat16)
    pipe.save_pretrained(remote)

    def snapshot_download(repo_id: str, *, allow_patterns: list[str]) -> str:
        assert repo_id == REPO_ID
        for pattern in allow_patterns:
            for file in remote.rglob(pattern):
                (cache / file.relative_to(remote)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, cache / file.relative_to(remote))
        return str(cache)

    def model_info(repo_id: str) -> SimpleNamespace:
        files = [file.relative_to(remote).as_posix() for file in remote.rglob("*") if file.is_file()]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files])

    def parse_safetensors_file_metadata(repo_id: str, filename: str) -> SimpleNamespace:
        return SimpleNamespace(parameter_count=dict(header_counts(remote / filename)))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "parse_safetensors_file_metadata", parse_safetensors_file_metadata)
    return remote, cache


def failing(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_a_hub_id_loads_the_pipeline_without_its_weights(repository: tuple[Path, Path]) -> None:
    pipe = catalog.load(REPO_ID)
    assert pipe.unet.dtype == torch.bfloat16
    assert pipe.vae.dtype == torch.float32
    assert all(parameter.is_meta for parameter in pipe.unet.parameters())
    assert not [*repository[1].rglob("*.safetensors")]


def test_weights_in_the_cache_are_read_without_asking_the_hub(
    repository: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    remote, cache = repository
    shutil.copytree(remote, cache)
    monkeypatch.setattr(huggingface_hub, "model_info", failing(AssertionError("asked")))
    assert catalog.load(REPO_ID).unet.dtype == torch.bfloat16


@pytest.mark.parametrize("function", ["snapshot_download", "model_info"])
def test_without_a_network_the_error_says_so_and_lists_names(
    repository: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    error = LocalEntryNotFoundError("Got: ConnectError: Name or service not known\nPlease check ...")
    monkeypatch.setattr(huggingface_hub, function, failing(error))
    with pytest.raises(UsageError, match=r"cannot be reached: Got: ConnectError.* sd15, sdxl"):
        catalog.load(REPO_ID)


def test_a_refusal_of_the_hub_is_quoted_and_names_are_listed(
    repository: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    response: Any = SimpleNamespace(headers={}, request=None)
    error = GatedRepoError("Access to model is restricted.", response=response)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing(error))
    with pytest.raises(UsageError, match=r"refused 'some-org/tiny-model': Access.* sd15, sdxl"):
        catalog.load(REPO_ID)
