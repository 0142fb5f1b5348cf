import json
import re

import pytest

from tests.cli.cli_runner import check_text, refused, run
from vramtune.machine import gpus
from vramtune.schema import Plan

NAMES = ("H100 80GB SXM", "RTX 4090", "RTX 4060", "RTX 3060", "RTX 2060")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Fewer GPUs than are known: all of them take some seconds."""
    devices = tuple(map(gpus.find_gpu, NAMES))
    monkeypatch.setattr(gpus, "gpus", lambda: devices)


def test_a_ranking_is_this_text():
    result = run("which", "sd15", "--seconds", 5)
    assert (result.exit_code, result.stderr) == (0, "")
    check_text("which.txt", result.stdout)


def test_a_ranking_is_one_json_object():
    found = json.loads(run("which", "sd15", "--vram-gb", 4, "--seconds", 5, "--json").stdout)
    assert found["fits"] is True
    rows = found["ranking"]["gpus"]
    assert {row["gpu"] for row in rows} == {*NAMES}
    in_time = [row["seconds"] for row in rows if row["is_in_time"]]
    assert in_time == sorted(in_time)
    assert rows[: len(in_time)] == [row for row in rows if row["is_in_time"]]
    assert all(row["peak_bytes"] <= row["budget_bytes"] <= 4 * 2**30 for row in rows)
    assert all(row["low_seconds"] <= row["seconds"] <= row["high_seconds"] for row in rows)
    assert all(row["bound_seconds"] <= row["seconds"] * 1.001 for row in rows)
    assert all(row["seconds"] <= row["least_seconds"] * 1.001 for row in rows)


def test_a_gpu_s_seconds_are_its_plan_s(tmp_path):
    rows = json.loads(run("which", "sdxl", "--vram-gb", 8, "--json").stdout)["ranking"]["gpus"]
    (row,) = [row for row in rows if row["gpu"] == "RTX 4060"]
    run("plan", "sdxl", "--vram-gb", 8, "--gpu", "4060", "--save", tmp_path / "plan.json")
    estimate = Plan.load(tmp_path / "plan.json").estimate
    assert (row["seconds"], row["peak_bytes"]) == (estimate.seconds, estimate.peak_bytes)
    assert (row["low_seconds"], row["high_seconds"]) == (estimate.low.seconds, estimate.high.seconds)


def test_where_nothing_fits_it_ends_with_3_and_says_what_would_do():
    result = run("which", "wan2.1-14b", "--vram-gb", 8)
    assert result.exit_code == 3
    assert re.search(r"None of \d+ GPUs does it\. It needs \d+\.\d\d GiB at the least", " ".join(result.stdout.split()))
    found = run("which", "wan2.1-14b", "--vram-gb", 8, "--json")
    assert (found.exit_code, json.loads(found.stdout)["fits"]) == (3, False)
    assert {row["helpful_permission"] for row in json.loads(found.stdout)["ranking"]["gpus"]} == {"vae_tiling"}


@pytest.mark.slow
def test_all_gpus_that_are_known_are_ranked(monkeypatch):
    monkeypatch.undo()
    rows = json.loads(run("which", "sd15", "--json").stdout)["ranking"]["gpus"]
    assert {row["gpu"] for row in rows} == {*gpus.gpu_names()}


def test_where_it_fits_and_no_gpu_is_fast_enough_it_ends_with_3():
    result = run("which", "sd15", "--seconds", 0.001)
    assert result.exit_code == 3
    assert "it fits and takes longer" in " ".join(result.stdout.split())


def test_a_ranking_is_drawn(tmp_path):
    assert run("which", "sd15", "--seconds", 5, "--plot", tmp_path / "gpus.png").exit_code == 0
    assert (tmp_path / "gpus.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seconds", "0"], "--seconds takes a time above 0"),
        (["--seconds", "nan"], "--seconds takes a time above 0"),
        (["--vram-gb", "much"], "--vram-gb"),
        (["--allow", "magic"], "Unknown permission 'magic'"),
        (["--plot", "gpus.doc"], "must end in"),
    ],
)
def test_wrong_usage_is_said(arguments, said):
    refused(run("which", "sd15", *arguments), said)


def test_a_saved_profile_is_of_one_gpu(saved):
    refused(run("which", saved), "is a saved profile, which is of one GPU")
