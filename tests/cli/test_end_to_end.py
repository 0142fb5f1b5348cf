"""The command line on real pipelines, real GPU facts and the real tuner: nothing stands in."""

import json

import pytest

from tests import tiny_pipelines
from tests.cli.cli_runner import refused, run
from vramtune.schema import Plan
from vramtune.units import GIB


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipelines") / "tiny-sd15"
    tiny_pipelines.build("sd15").save_pretrained(path)
    return path


SMALL = ["--gpu", "RTX 4060", "--height", "32", "--width", "32", "--steps", "3"]


def test_a_folder_is_planned_for_end_to_end(folder, tmp_path):
    files = ["--plot", tmp_path / "memory.png", "--save", tmp_path / "plan.json"]
    result = run("plan", folder, "--vram-gb", 1, *SMALL, *files, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    calls = {row["component"]: row["num_calls"] for row in found["profile"]["components"]}
    assert calls == {"text_encoder": 2, "unet": 3, "vae": 1}
    assert found["profile"]["call_kwargs"] | {"height": 32, "num_inference_steps": 3} == found["profile"]["call_kwargs"]
    assert found["plan"]["estimate"]["peak_bytes"] <= GIB
    assert Plan.load(tmp_path / "plan.json").asked_bytes == GIB
    assert (tmp_path / "memory.png").stat().st_size > 10_000


def test_a_folders_plan_in_text_begins_with_the_verdict(folder):
    result = run("plan", folder, "--vram-gb", 1, *SMALL)
    assert result.exit_code == 0
    assert result.stdout.startswith("Fits (predicted). Peak ")
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_a_folder_in_too_little_memory_ends_with_3(folder):
    result = run("plan", folder, "--vram-gb", 0.1, *SMALL)
    assert result.exit_code == 3
    assert "does not fit 102 MiB" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--vram-gb", "24", *SMALL], ["24.00 GiB", "RTX 4060", "8.00 GiB"]),
        (["--vram-gb", "1", *SMALL, "--allow", "vae_tilling"], ["vae_tilling", "vae_tiling"]),
        (["--vram-gb", "1", *SMALL, "--height", "33"], ["33", "divisible by 8"]),
        (["--vram-gb", "1", *SMALL, "--frames", "9"], ["--frames", "StableDiffusionPipeline"]),
    ],
)
def test_bad_input_for_a_real_pipeline_is_refused(folder, arguments, said):
    refused(run("plan", folder, *arguments), *said)


def test_an_unknown_model_lists_the_near_ones():
    refused(run("plan", "sdxll", "--vram-gb", 8, "--gpu", "RTX 4060"), "sdxll", "sdxl")


def test_a_folder_without_a_pipeline_is_refused(tmp_path):
    refused(run("plan", tmp_path, "--vram-gb", 8, "--gpu", "RTX 4060"), "model_index.json")


def test_a_saved_profile_gives_the_same_plan(folder, tmp_path):
    assert run("profile", folder, *SMALL, "--save", tmp_path / "tiny.json").exit_code == 0
    direct = run("plan", folder, "--vram-gb", 1, *SMALL)
    assert run("plan", tmp_path / "tiny.json", "--vram-gb", 1).stdout == direct.stdout
    assert run("frontier", tmp_path / "tiny.json").stdout == run("frontier", folder, *SMALL).stdout
