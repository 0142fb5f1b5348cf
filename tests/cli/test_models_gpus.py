import json

from tests.cli.cli_runner import run
from vramtune import catalog
from vramtune.units import GIB


def test_models_are_listed():
    result = run("models")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[3:]] == list(catalog.names())
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_models_are_one_json_object():
    found = json.loads(run("models", "--json").stdout)
    assert [model["name"] for model in found["models"]] == list(catalog.names())


def test_gpus_are_listed():
    result = run("gpus")
    assert result.exit_code == 0
    assert "\nRTX 4060 " in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_gpus_are_one_json_object():
    found = json.loads(run("gpus", "--json").stdout)
    assert all(gpu["total_bytes"] > gpu["usable_bytes"] > GIB for gpu in found["gpus"])
