"""A folder that someone else wrote is refused before it takes time or memory: a second and 100 MB at the most."""

import json
import os
import resource
import shutil
import time

import pytest
import torch

from tests.catalog.test_folder import edit, save
from vramtune import catalog
from vramtune.catalog import limits
from vramtune.errors import UsageError

MILLION = 10**6


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = save("sd15", tmp_path_factory.mktemp("built"))
    catalog.load(folder)
    return folder


@pytest.fixture
def folder(built, tmp_path):
    """A tiny Stable Diffusion; its pipeline's classes are loaded."""
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    return tmp_path


def refused(folder, match):
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError, match=match) as caught:
        catalog.load(str(folder))
    assert time.perf_counter() - began < 3  # a second, on a machine that does nothing else
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("component", "entries"),
    [
        ("unet", {"layers_per_block": MILLION}),
        ("unet", {"down_block_types": ["DownBlock2D"] * 10_000}),
        ("unet", {"cross_attention_dim": 10**12}),
        ("unet", {"cross_attention_dim": 10**9}),
        ("unet", {"layers_per_block": 10**30}),
        ("unet", {"block_out_channels": [MILLION, MILLION]}),
        ("text_encoder", {"num_hidden_layers": MILLION}),
        ("text_encoder", {"vocab_size": 10**10}),
        ("vae", {"layers_per_block": MILLION}),
    ],
    ids=range(9),
)
def test_a_configuration_of_something_huge(folder, component, entries):
    edit(folder / component / "config.json", **entries)
    refused(folder, component)


def test_many_modules_by_several_numbers_that_are_possible(folder, monkeypatch):
    monkeypatch.setattr(limits, "MAX_MODULES", 200)  # a second's worth
    edit(folder / "unet" / "config.json", layers_per_block=900, transformer_layers_per_block=900)
    refused(folder, "'unet' cannot be built: it has more than 200 modules")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[]", "3", "\ud800"], ids=range(5))
@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_a_configuration_that_is_nested_or_something_else(folder, file, text):
    (folder / file).write_bytes(text.encode(errors="surrogatepass"))
    refused(folder, "damaged|Cannot build|missing")


FILES = [
    "model_index.json",
    "unet/config.json",
    "tokenizer/tokenizer_config.json",
    "vae/diffusion_pytorch_model.safetensors",
]
EACH_FILE = pytest.mark.parametrize("file", FILES)


@EACH_FILE
def test_a_pipe_in_place_of_a_file(folder, file):
    (folder / file).unlink()
    os.mkfifo(folder / file)
    refused(folder, "not a regular file")


@EACH_FILE
def test_a_device_in_place_of_a_file(folder, file):
    (folder / file).unlink()
    (folder / file).symlink_to("/dev/zero")
    refused(folder, "not a regular file")


@pytest.mark.parametrize("file", [file for file in FILES if "tokenizer" not in file])  # it does without
def test_a_folder_in_place_of_a_file(folder, file):
    (folder / file).unlink()
    (folder / file).mkdir()
    refused(folder, "folder|not a regular file|Cannot build")


@EACH_FILE
def test_a_file_of_100_gb(folder, file):
    with (folder / file).open("wb") as stream:
        stream.truncate(10**11)
    if file.endswith("safetensors"):  # of which the header, of no bytes, is read
        refused(folder, "damaged")
    else:
        refused(folder, "bytes; at most")


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"w": {"dtype": "F16", "shape": [-1]}}',
        json.dumps({"w": {"dtype": "F16", "shape": [2**62] * 10_000}}).encode(),
        b'{"w": {"dtype": ["F16"], "shape": [1]}}',
        b"\xff\xfe",
    ],
    ids=range(6),
)
def test_a_header_that_is_nested_or_impossible(folder, header):
    file = next(folder.glob("vae/*.safetensors"))
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    refused(folder, "damaged or not a safetensors file")


def test_a_header_that_says_it_is_huge(folder):
    file = next(folder.glob("vae/*.safetensors"))
    with file.open("wb") as stream:
        stream.write((10**8).to_bytes(8, "little"))
        stream.truncate(10**9)
    refused(folder, "a header of 100000000 bytes")


def test_a_component_outside_of_the_folder_is_not_looked_for(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    os.mkfifo(outside / "config.json")
    edit(folder / "model_index.json", **{str(outside): ["diffusers", "UNet2DConditionModel"]})
    assert catalog.load(str(folder)).unet is not None


def test_names_in_a_folder_do_not_reach_the_terminal(folder):
    edit(folder / "model_index.json", unet=["diffusers", "\x1b]0;gone\x07\u202eledoM"])
    with pytest.raises(UsageError) as caught:
        catalog.load(str(folder))
    assert "\\x1b]0;gone\\x07\\u202eledoM" in str(caught.value)


def test_nothing_stays_of_the_limits(folder):
    catalog.load(str(folder))
    before = len(torch.nn.modules.module._global_module_registration_hooks)
    edit(folder / "unet" / "config.json", layers_per_block=MILLION)
    refused(folder, "unet")
    assert len(torch.nn.modules.module._global_module_registration_hooks) == before
    assert torch.nn.Linear(2, 2).weight.abs().sum() > 0
