import json

from tests.cli.cli_runner import check_text, run
from tests.reports import examples
from vramtune.schema import Profile


def test_a_profile_is_this_text(saved):
    result = run("profile", saved)
    assert (result.exit_code, result.stderr) == (0, "")
    check_text("profile.txt", result.stdout)


def test_a_profile_is_one_json_object(profiler):
    result = run("profile", "sdxl", "--gpu", "4060", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["profile"]["pipeline_class"]) == (0, "StableDiffusionXLPipeline")


def test_a_profile_is_saved_and_planned_for(profiler, tmp_path):
    assert run("profile", "sdxl", "--gpu", "4060", "--save", tmp_path / "sdxl.json").exit_code == 0
    saved = Profile.load(tmp_path / "sdxl.json")
    assert examples.in_memory(saved) == examples.sdxl()
    assert all(component.file_bytes > 0 for component in saved.components)  # nothing is loaded
    assert run("plan", tmp_path / "sdxl.json", "--vram-gb", 6).exit_code == 0
