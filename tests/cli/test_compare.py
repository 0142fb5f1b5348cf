import json

from tests.cli.cli_runner import check_text, run


def test_a_comparison_is_this_text(saved):
    result = run("compare", saved, "--vram-gb", 6)
    assert (result.exit_code, result.stderr) == (0, "")
    check_text("compare.txt", result.stdout)


def test_a_comparison_is_one_json_object(saved):
    result = run("compare", saved, "--vram-gb", 6, "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["fits"]) == (0, True)
    modes = found["comparison"]["modes"]
    assert (modes[0]["mode"], modes[0]["plan_ratio"]) == ("vramtune", 1.0)
    assert "all resident" in [mode["mode"] for mode in modes]
    assert found["comparison"]["bound_seconds"] <= modes[0]["seconds"]


def test_where_no_plan_fits_it_ends_with_3_and_the_table_is_there(saved):
    result = run("compare", saved, "--vram-gb", 2)
    assert result.exit_code == 3
    assert "does not fit 2.00 GiB" in result.stdout
    assert "\nmodel offload " in result.stdout
    found = run("compare", saved, "--vram-gb", 2, "--json")
    assert (found.exit_code, json.loads(found.stdout)["fits"]) == (3, False)


def test_bars_are_drawn_whether_it_fits_or_not(saved, tmp_path):
    for budget, code in ((6, 0), (2, 3)):
        path = tmp_path / f"{budget}.png"
        assert run("compare", saved, "--vram-gb", budget, "--plot", path).exit_code == code
        assert path.read_bytes().startswith(b"\x89PNG")
