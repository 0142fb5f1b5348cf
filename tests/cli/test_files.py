"""Files that cannot be written are refused before anything takes time."""

import os

import pytest

from tests.cli.cli_runner import refused, run

PLAN = ("plan", "sdxl", "--vram-gb", "6", "--gpu", "RTX 4060")
ASKED = [
    (PLAN, "--plot", "out.png"),
    (PLAN, "--save", "out.json"),
    (PLAN, "--report", "out.html"),
    (PLAN, "--trace", "out.json"),
    (("compare", *PLAN[1:]), "--plot", "out.pdf"),
    (("frontier", "sdxl", "--gpu", "4060"), "--plot", "out.svg"),
    (("profile", "sdxl", "--gpu", "4060"), "--save", "out.json"),
]
EACH = pytest.mark.parametrize(
    ("command", "option", "name"), ASKED, ids=[f"{command[0]} {option}" for command, option, _ in ASKED]
)


@EACH
def test_a_file_in_a_missing_folder_is_refused(profiler, tmp_path, command, option, name):
    refused(run(*command, option, tmp_path / "missing" / name), option, "there is no folder")
    assert profiler.asked == {}


@EACH
def test_a_file_named_like_a_folder_is_refused(profiler, tmp_path, command, option, name):
    (tmp_path / name).mkdir()
    refused(run(*command, option, tmp_path / name), option, "is a folder")
    assert profiler.asked == {}


@EACH
def test_a_file_without_permission_is_refused(profiler, tmp_path, monkeypatch, command, option, name):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    refused(run(*command, option, tmp_path / name), option, "permission denied")
    assert profiler.asked == {}


def test_one_file_named_twice_is_refused(profiler, tmp_path):
    out = tmp_path / "out.json"
    refused(run(*PLAN, "--save", out, "--trace", out), "--trace", "--save already names")
    assert profiler.asked == {}


def test_the_profile_that_is_read_is_not_overwritten(saved):
    before = saved.read_bytes()
    refused(run("plan", saved, "--vram-gb", 6, "--save", saved), "--save", "MODEL already names")
    assert saved.read_bytes() == before


@EACH
@pytest.mark.parametrize("suffix", [".xyz", ""])
def test_a_file_of_an_unknown_format_is_refused(profiler, tmp_path, command, option, name, suffix):
    refused(run(*command, option, tmp_path / f"out{suffix}"), option, f".{name.partition('.')[2]}")
    assert profiler.asked == {}
