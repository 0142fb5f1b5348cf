import json
from dataclasses import replace

from tests.cli.cli_runner import check_text, run
from tests.reports import examples
from vramtune.units import GIB


def test_a_frontier_is_this_text(saved):
    result = run("frontier", saved)
    assert (result.exit_code, result.stderr) == (0, "")
    check_text("frontier.txt", result.stdout)


def test_a_frontier_is_one_json_object(saved):
    result = run("frontier", saved, "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["fits"]) == (0, True)
    budgets = [point["budget_bytes"] for point in found["frontier"]["points"]]
    assert budgets == sorted(budgets)


def test_a_frontier_is_drawn(saved, tmp_path):
    assert run("frontier", saved, "--plot", tmp_path / "f.png").exit_code == 0
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_where_nothing_fits_the_card_it_ends_with_3_and_says_what_would_do(tmp_path):
    profile = examples.sdxl()
    small = replace(profile.device, total_bytes=2 * GIB, usable_bytes=int(1.8 * GIB))
    replace(profile, device=small).save(tmp_path / "small.json")
    result = run("frontier", tmp_path / "small.json", "--plot", tmp_path / "f.png")
    assert result.exit_code == 3
    assert "takes a larger GPU" in " ".join(result.stdout.split())
    assert "f.png" in result.stderr
    assert not (tmp_path / "f.png").exists()
    found = run("frontier", tmp_path / "small.json", "--json")
    assert (found.exit_code, json.loads(found.stdout)["fits"]) == (3, False)
