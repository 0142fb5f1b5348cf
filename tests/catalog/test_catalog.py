import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline

from vramtune import catalog
from vramtune.catalog.entries import find_entry
from vramtune.catalog.pipelines import BUILDERS
from vramtune.errors import UnknownNameError, UsageError


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the entries that were built, instead of pipelines."""
    names: list[str] = []
    for name in BUILDERS:
        monkeypatch.setitem(BUILDERS, name, partial(names.append, name))
    return names


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("SDXL", "sdxl"),
        ("sd15", "sd15"),
        ("SD 1.5", "sd15"),
        ("flux", "flux.1-dev"),
        ("FLUX.1-dev", "flux.1-dev"),
        ("wan2.1-14B", "wan2.1-14b"),
        ("sd3.5-large", "sd3.5-large"),
        ("sd3.5 medium", "sd3.5-medium"),
        ("SD3 medium", "sd3-medium"),
        ("FLUX.2-klein-4B", "flux.2-klein-4b"),
        ("flux2 klein 9b", "flux.2-klein-9b"),
        ("FLUX.1-schnell", "flux.1-schnell"),
        ("flux kontext", "flux.1-kontext-dev"),
        ("Z-Image-Turbo", "z-image-turbo"),
        ("Qwen-Image", "qwen-image"),
        ("Qwen-Image-Edit-2511", "qwen-image-edit-2511"),
        ("Wan 2.2", "wan2.2-t2v-a14b"),
        ("Wan2.2-TI2V-5B", "wan2.2-ti2v-5b"),
        ("LTX-2.3", "ltx-2.3"),
        ("HunyuanVideo-1.5", "hunyuanvideo-1.5"),
        ("Chroma", "chroma1-hd"),
        ("HiDream-I1", "hidream-i1-full"),
        ("PixArt-Sigma", "pixart-sigma"),
        ("Ideogram 4", "ideogram-4"),
        ("Krea-2-Turbo", "krea-2"),
        ("FLUX.3 klein", "flux.3-klein"),
        ("HunyuanDiT", "hunyuan-dit"),
        ("LTX 13B", "ltx-13b"),
        ("CogVideoX-5b", "cogvideox-5b"),
        ("Latte-1", "latte"),
        ("MiniMax-H3", "minimax-h3"),
    ],
)
def test_a_name_is_matched_whatever_its_case_and_punctuation(built: list[str], asked: str, meant: str) -> None:
    catalog.load(asked)
    assert built == [meant]


def test_every_listed_name_and_alias_means_its_own_entry(built: list[str]) -> None:
    for entry in catalog.models():
        for name in (entry.name, *entry.aliases):
            catalog.load(name)
            assert built.pop() == entry.name
    assert catalog.names() == tuple(BUILDERS)


def test_no_name_means_two_entries() -> None:
    bare = [
        {re.sub(r"[^a-z0-9]", "", name.lower()) for name in (entry.name, *entry.aliases)} for entry in catalog.models()
    ]
    assert sum(map(len, bare)) == len(set().union(*bare))


@pytest.mark.parametrize("entry", catalog.models(), ids=lambda entry: entry.name)
def test_the_repository_s_own_name_is_known(entry: catalog.Entry) -> None:
    assert find_entry(entry.source.rpartition("/")[2]) is entry


@pytest.mark.parametrize("name", ["sd3.5", "sdxxl", "dall-e"])
def test_an_unknown_name_lists_known_ones(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"sd3\.5-large|sdxl"):
        catalog.load(name)


def test_a_path_that_does_not_exist_is_refused_as_a_path_not_as_a_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not exist.*save_pretrained.*sdxl"):
        catalog.load(str(tmp_path / "sdxl"))


def test_a_single_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(UsageError, match="a file, not a folder"):
        catalog.load(str(file))


def test_a_path_means_the_folder_and_not_the_entry_of_that_name(
    built: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sdxl").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="not a folder written by a pipeline's `save_pretrained`"):
        catalog.load("./sdxl")
    catalog.load("sdxl")
    assert built == ["sdxl"]


def test_a_folder_without_a_path_sign_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="not a folder written by a pipeline's `save_pretrained`"):
        catalog.load("my-model")


def test_names_are_listed_without_torch() -> None:
    code = "import sys; from vramtune import catalog; catalog.models(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_loaded_name_is_a_diffusers_pipeline() -> None:
    assert isinstance(catalog.load("sd15"), DiffusionPipeline)
