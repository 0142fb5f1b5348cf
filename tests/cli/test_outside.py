"""What comes from outside: names from files, a standard output that is full, numbers that are too large."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.cli_runner import refused, run
from tests.reports import examples
from vramtune.errors import UsageError
from vramtune.printable import printable
from vramtune.reports import plots
from vramtune.schema import Plan, Profile, to_json

EVIL = "\x1b]0;gone\x07\x1b[2J\x9b31m\u202eelbatrap"
SHOWN = "\\x1b]0;gone\\x07\\x1b[2J\\x9b31m\\u202eelbatrap"
RAW = ("\x1b", "\x07", "\x9b", "\u202e")


def evil_file(path):
    """A profile in which every name is such a one."""
    text = to_json(examples.sdxl()).decode()
    for name in ("StableDiffusionXLPipeline", "GeForce RTX 4060", "unet", "vae", "height"):
        text = text.replace(f'"{name}', json.dumps(EVIL + name)[:-1])
    path.write_text(text)
    return path


@pytest.mark.parametrize("command", ["plan", "compare", "frontier", "profile"])
@pytest.mark.parametrize("output", [[], ["--json"]], ids=["text", "json"])
def test_names_from_a_file_do_not_reach_the_terminal(tmp_path, command, output):
    budget = ["--vram-gb", 6] if command in ("plan", "compare") else []
    result = run(command, evil_file(tmp_path / "evil.json"), *budget, *output)
    assert result.exit_code == 0
    assert not any(letter in result.output for letter in RAW)
    assert "gone" in result.output


def test_names_in_an_error_do_not_reach_the_terminal(tmp_path):
    path = tmp_path / "evil.json"
    path.write_text(json.dumps({"kind": EVIL, "schema_version": 3, "body": {}}))
    result = run("plan", path, "--vram-gb", 6)
    refused(result, SHOWN)
    assert not any(letter in result.stderr for letter in RAW)


def test_a_small_budget_for_such_a_file_is_said_without_them(tmp_path):
    result = run("plan", evil_file(tmp_path / "evil.json"), "--vram-gb", 1)
    assert result.exit_code == 3
    assert not any(letter in result.output for letter in RAW)


def test_what_a_terminal_obeys_is_spelt_and_all_else_stays():
    assert printable(EVIL) == SHOWN
    words = "Größe 模型 🦊 נוף\n\tx"
    assert printable(words) is words or printable(words) == words
    assert str(UsageError(EVIL)) == SHOWN


def test_a_dollar_in_a_name_is_no_formula(tmp_path):
    path = tmp_path / "dollars.json"
    name = r"$\frac{1}$ $x^2$"
    text = to_json(examples.sdxl()).decode().replace('"unet', json.dumps(name + "unet")[:-1])
    path.write_text(text.replace('"StableDiffusionXLPipeline"', json.dumps(name)))
    costs = Profile.load(path)
    picture = tmp_path / "out.svg"
    for axes in (costs.plot(), plots.draw_components(plots.component_costs(costs), ax=costs.plot())):
        plots.save(axes, picture)  # mathtext would refuse the name
    assert run("plan", path, "--vram-gb", 6, "--plot", picture).exit_code == 0
    assert run("compare", path, "--vram-gb", 6, "--plot", picture).exit_code == 0


# ---------------------------------------------------------------------------------------------------
# Standard output


def as_process(*arguments, **streams):
    code = "from vramtune.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], stderr=subprocess.PIPE, text=True, timeout=120, **streams
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
@pytest.mark.parametrize("arguments", [["gpus"], ["models", "--json"], ["--help"], ["--version"]], ids=" ".join)
def test_a_full_standard_output_is_said_in_one_line(arguments):
    with Path("/dev/full").open("w") as full:
        result = as_process(*arguments, stdout=full)
    assert result.stderr == "Error: Cannot write to standard output: No space left on device.\n"
    assert result.returncode == 2


def test_an_output_that_knows_few_letters_gets_the_others_spelt(saved):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = as_process("plan", saved, "--vram-gb", 6, stdout=subprocess.PIPE, env=environment)
    assert (result.returncode, result.stderr) == (0, "")


# ---------------------------------------------------------------------------------------------------
# Arguments


@pytest.mark.parametrize("number", ["1e308", "9" * 400, "1e-320", "nan", "inf", "1e400"])
def test_budgets_that_no_gpu_has_are_refused(profiler, number):
    refused(run("plan", "sdxl", "--gpu", "4060", "--vram-gb", number), "--vram-gb")
    assert profiler.asked == {}


@pytest.mark.parametrize("option", ["--height", "--steps", "--batch"])
def test_numbers_that_nothing_counts_to_are_refused(profiler, option):
    refused(run("plan", "sdxl", "--gpu", "4060", "--vram-gb", 6, option, "9" * 30), option)
    assert profiler.asked == {}


@pytest.mark.parametrize(
    "model", ["n" * 300, "n" * 300 + ".json", "a\0b", "~nobody/x", "~nobody/x.json", "", "./" * 3000]
)
def test_models_that_cannot_be_named_so_are_refused(model):
    refused(run("plan", model, "--gpu", "4060", "--vram-gb", 6))


@pytest.mark.parametrize("name", ["n" * 300 + ".json", "a\0b.json"])
def test_files_that_cannot_be_named_so_are_refused(profiler, tmp_path, name):
    refused(run("plan", "sdxl", "--gpu", "4060", "--vram-gb", 6, "--save", f"{tmp_path}/{name}"), "--save")
    assert profiler.asked == {}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (["stages"], []),
        (["stages", 0, "num_iterations"], 0),
        (["stages", 0, "activities"], []),
        (["stages", 0, "activities", 0, "num_calls"], 0),
        (["stages", 0, "activities", 0, "num_calls"], 10**9),
        (["stages", 0, "activities", 0, "component"], "other"),
        (["stages", 0, "activities", 0, "segments", 0, "layer"], -1),
        (["components", 0, "groups"], []),
        (["components", 0, "layers", 0, "group"], 10**6),
        (["device", "total_bytes"], -1),
        (["device", "overlap_fraction"], 0),
        (["device", "pinned_copy_bytes_per_second"], 0),
        (["device", "memory_bytes_per_second"], 1e300),
    ],
    ids=str,
)
def test_impossible_profiles_are_refused(tmp_path, part, value):
    refused(run("plan", with_part(examples.sdxl(), part, value, tmp_path), "--vram-gb", 6), "damaged")


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (["stages"], []),
        (["estimate", "stages"], []),
        (["stages", 0, "visits"], [[99, 0]]),
        (["stages", 0, "visits"], [[0, 99]]),
        (["stages", 0, "visits"], [[0, -1]]),
        (["placements", 0, "groups"], []),
        (["placements", 0, "kept"], []),
        (["placements", 0, "num_slots"], 0),
        (["budget_bytes"], 0),
        (["estimate", "seconds"], -1),
        (["reasons"], [{"kind": "peak"}]),
    ],
    ids=str,
)
def test_impossible_plans_are_refused(tmp_path, part, value):
    with pytest.raises(UsageError, match=r"file\.json.*damaged"):
        Plan.load(with_part(examples.sdxl_plan(), part, value, tmp_path))


def with_part(noun, part, value, folder):
    envelope = json.loads(to_json(noun))
    *path, last = part
    place = envelope["body"]
    for key in path:
        place = place[key]
    place[last] = value
    (folder / "file.json").write_text(json.dumps(envelope))
    return folder / "file.json"


@pytest.mark.parametrize("text", [b"[" * 10**5, b'{"body":' * 10**5, b"\xff\xfe\x00", b"\x80" * 100, b""], ids=range(5))
def test_files_of_something_else_are_refused(tmp_path, text):
    (tmp_path / "other.json").write_bytes(text)
    refused(run("plan", tmp_path / "other.json", "--vram-gb", 6), "not a vramtune file")


@pytest.mark.parametrize("place", ["pipe.json", "zero.json", "large.json"])
def test_what_never_ends_is_not_read(tmp_path, place):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(10**11)
    refused(run("plan", tmp_path / place, "--vram-gb", 6), "Cannot read")
