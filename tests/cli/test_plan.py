import json
from dataclasses import replace

import pytest

from tests.cli.cli_runner import check_text, refused, run
from tests.reports import examples
from vramtune.schema import Plan, Variant
from vramtune.units import GIB


@pytest.fixture
def plan(saved):
    return ("plan", saved, "--vram-gb", "6")


def test_a_plan_for_a_saved_profile_is_this_text(plan):
    result = run(*plan)
    assert (result.exit_code, result.stderr) == (0, "")
    check_text("plan.txt", result.stdout)


def test_a_plan_is_one_json_object(plan):
    result = run(*plan, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["fits"] is True
    assert found["plan"]["asked_bytes"] == 6 * GIB
    assert found["comparison"]["modes"][0]["seconds"] == found["plan"]["estimate"]["seconds"]


def test_a_budget_that_is_too_small_ends_with_3_and_says_what_would_do(saved):
    result = run("plan", saved, "--vram-gb", 2)
    assert result.exit_code == 3
    check_text("plan_does_not_fit.txt", result.stdout)


def test_a_budget_that_is_too_small_is_json_too(saved):
    result = run("plan", saved, "--vram-gb", 2, "--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert (found["fits"], found["budget_bytes"]) == (False, 2 * GIB)
    assert found["smallest_bytes"] > 2 * GIB
    assert all(mode["fits"] is False for mode in found["comparison"]["modes"])


def test_the_smallest_budget_that_is_named_fits(saved):
    smallest = json.loads(run("plan", saved, "--vram-gb", 2, "--json").stdout)["smallest_bytes"]
    assert run("plan", saved, "--vram-gb", smallest / GIB).exit_code == 0


# Host memory


def test_a_host_with_too_little_memory_ends_with_3_and_says_what_would_do(plan):
    result = run(*plan, "--ram-gb", 0.5, "--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert (found["fits"], found["resource"], found["budget_bytes"]) == (False, "ram", GIB // 2)
    smallest = found["smallest_bytes"]
    assert run(*plan, "--ram-gb", smallest / GIB).exit_code == 0
    words = " ".join(run(*plan, "--ram-gb", 0.5).stdout.split())
    assert words.startswith("StableDiffusionXLPipeline does not fit 0.50 GiB of host memory beside 6.00 GiB on the")
    assert "vramtune.load" in words


def test_what_may_be_page_locked_is_held_to_and_takes_no_memory_away(plan):
    limited, free = (json.loads(run(*plan, *more, "--json").stdout)["plan"] for more in (("--lock-gb", 1), ()))
    assert limited["lockable_bytes"] == GIB
    assert 0 < limited["estimate"]["locked_bytes"] <= GIB < free["estimate"]["locked_bytes"]
    assert limited["estimate"]["seconds"] >= free["estimate"]["bound_seconds"]
    assert limited["ram_bytes"] is free["ram_bytes"] is None
    refused = run(*plan, "--lock-gb", 0)
    assert refused.exit_code == 2
    assert "--lock-gb must be a finite number above 0" in refused.stderr


def test_a_plan_says_what_it_takes_of_the_host_and_of_what(plan):
    found = run(*plan, "--ram-gb", 16).stdout
    (line,) = (line for line in found.splitlines() if line.startswith("host memory"))
    assert "of 16.00 GiB" in line
    estimate = json.loads(run(*plan, "--ram-gb", 16, "--json").stdout)["plan"]
    assert estimate["ram_bytes"] == estimate["lockable_bytes"] == 16 * GIB
    assert estimate["estimate"]["locked_bytes"] > 0


def test_a_plan_of_files_that_do_not_fit_says_how_fast_they_are_taken_to_be_read():
    flux = ("plan", "flux.1-dev", "--gpu", "4060", "--vram-gb", 8, "--ram-gb", 8)
    assumed, given = (
        json.loads(run(*flux, *rate, "--json").stdout)["plan"] for rate in ((), ("--storage-gb-per-s", 1))
    )
    assert (assumed["storage_bytes_per_second"], assumed["storage_source"]) == (3e9, "assumed")
    assert (given["storage_bytes_per_second"], given["storage_source"]) == (1e9, "given")
    assert given["estimate"]["seconds"] > assumed["estimate"]["seconds"]
    words = " ".join(run(*flux, "--storage-gb-per-s", 1).stdout.split())
    assert "more in files, read at 1 GB/s (given)" in words
    assert "waits longest for its files" in words


@pytest.mark.parametrize("given", ["0", "-1", "much", "nan", "1e9"])
def test_a_rate_that_no_drive_has_is_refused(plan, given):
    refused(run(*plan, "--storage-gb-per-s", given), "--storage-gb-per-s", "GB/s")


@pytest.mark.parametrize("given", ["0", "-1", "much", "nan"])
def test_a_ram_budget_that_is_none_is_refused(plan, given):
    refused(run(*plan, "--ram-gb", given), "--ram-gb", "GiB")


# Files


def test_a_plan_is_saved_and_can_be_read_back(plan, tmp_path):
    result = run(*plan, "--save", tmp_path / "plan.json", "--json")
    estimate = json.loads(result.stdout)["plan"]["estimate"]
    assert Plan.load(tmp_path / "plan.json").estimate.peak_bytes == estimate["peak_bytes"]


def test_every_file_is_what_its_option_says(plan, tmp_path):
    files = {name: tmp_path / name for name in ("plot.png", "save.json", "report.html", "trace.json")}
    options = [part for name, path in files.items() for part in (f"--{path.stem}", path)]
    assert run(*plan, *options).exit_code == 0
    assert files["plot.png"].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in files["report.html"].read_text(encoding="utf-8")
    events = json.loads(files["trace.json"].read_bytes())["traceEvents"]
    assert {"compute", "copy"} <= {event["args"].get("name") for event in events if event["ph"] == "M"}


def test_no_file_is_written_where_nothing_fits(saved, tmp_path):
    options = ("--plot", tmp_path / "m.png", "--report", tmp_path / "r.html", "--trace", tmp_path / "t.json")
    result = run("plan", saved, "--vram-gb", 2, *options, "--save", tmp_path / "p.json")
    assert result.exit_code == 3
    assert list(tmp_path.iterdir()) == []
    assert all(name in result.stderr for name in ("m.png", "r.html", "t.json", "p.json"))


def test_a_disk_that_refuses_the_file_is_an_error_of_ours(plan, tmp_path, monkeypatch):
    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Plan, "save", full)
    refused(run(*plan, "--save", tmp_path / "plan.json"), "--save", "No space left on device")


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_narrow_terminal_leaves_nothing_out(saved, monkeypatch, is_terminal):
    monkeypatch.setenv("COLUMNS", "40")
    if is_terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    found = run("plan", saved, "--vram-gb", 6).stdout
    assert ("\x1b" in found) == is_terminal
    assert "text_encoder_2" in found
    assert "group offload, block, stream" in found


# Budgets and permissions


@pytest.mark.parametrize("budget", ["0", "-8", "nan", "inf", "-inf"])
def test_a_budget_that_is_no_amount_is_refused(saved, budget):
    refused(run("plan", saved, "--vram-gb", budget), "--vram-gb", "finite number above 0", budget)


def test_a_budget_of_text_is_refused(saved):
    refused(run("plan", saved, "--vram-gb", "lots"), "--vram-gb", "lots")


def test_a_budget_is_required(saved):
    refused(run("plan", saved), "--vram-gb")


def test_a_budget_above_the_card_is_refused(saved):
    refused(run("plan", saved, "--vram-gb", "12"), "12.00 GiB", "RTX 4060 has 8.00 GiB")


def test_an_unknown_permission_is_refused(plan):
    refused(run(*plan, "--allow", "tf32"), "tf32", "vae_tiling", "fp8_weights")


def test_a_permission_that_a_saved_profile_knows_nothing_of_is_refused(plan):
    refused(run(*plan, "--allow", "fp8_weights"), "does not know what 'fp8_weights'", "profile --allow fp8_weights")


def test_a_permission_that_helps_is_used(tmp_path):
    profile = examples.sdxl()
    *others, decode = profile.stages
    small = replace(decode, activities=(replace(decode.activities[0], activation_bytes=GIB // 4),))
    variant = Variant(permissions=("vae_tiling",), stages=(*others, small))
    replace(profile, variants=(variant,)).save(tmp_path / "tiled.json")
    without = run("plan", tmp_path / "tiled.json", "--vram-gb", 2)
    assert (without.exit_code, "allow 'vae_tiling'" in " ".join(without.stdout.split())) == (3, True)
    allowed = run("plan", tmp_path / "tiled.json", "--vram-gb", 2, "--allow", "vae_tiling")
    assert (allowed.exit_code, "Allowed and used: vae_tiling." in " ".join(allowed.stdout.split())) == (0, True)
