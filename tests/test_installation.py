"""What an installation asks for, and what it leaves alone."""

import re
import subprocess
import sysconfig
import tomllib
import venv
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PIPELINES = {"torch", "diffusers", "accelerate", "transformers"}


def names(requirements):
    """Of packages, as they are compared."""
    return {re.match(r"[\w.-]+", each)[0].lower().replace("_", "-") for each in requirements}


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_nothing_that_it_asks_for_brings_torch():
    wanted, seen = names(project()["dependencies"]), set()
    assert {"numpy", "highspy", "typer"} <= wanted
    while wanted - seen:
        name = min(wanted - seen)
        seen.add(name)
        try:
            asked = metadata.requires(name) or ()
        except metadata.PackageNotFoundError:  # for another system or Python
            continue
        wanted |= names(each for each in asked if "extra ==" not in each)
    assert not seen & {*PIPELINES, "scipy"}


def test_the_extra_has_what_pipelines_need():
    assert names(project()["optional-dependencies"]["pipelines"]) == PIPELINES | {"filelock"}  # of torch too


@pytest.mark.slow
def test_an_installation_leaves_another_torch_alone(tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))  # the rest is there, so that nothing is fetched
    (site / "torch").mkdir()
    (site / "torch" / "__init__.py").write_text('__version__ = "2.0.0"\n')
    facts = site / "torch-2.0.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.0.0\n")
    (facts / "INSTALLER").write_text("a user\n")
    (facts / "RECORD").write_text("torch/__init__.py,,\ntorch-2.0.0.dist-info/METADATA,,\n")

    def run(*command):
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout

    pip = (python, "-m", "pip", "install", "--no-index", "--no-build-isolation", "--force-reinstall")
    (planned,) = re.findall(r"Would install (.*)", run(*pip, "--no-deps", "--dry-run", ROOT))
    assert re.fullmatch(r"vramtune-\S+", planned)
    resolved = run(*pip[:-1], "--dry-run", ROOT)  # with all that it depends on, which is there
    assert "torch" not in resolved
    run(*pip, "--no-deps", ROOT)
    version, where = run(python, "-c", "import torch, vramtune; print(torch.__version__, vramtune.__file__)").split()
    assert version == "2.0.0"
    assert Path(where).is_relative_to(site)
    assert (facts / "INSTALLER").read_text() == "a user\n"
    plan = run(python.with_name("vramtune"), "plan", "sdxl", "--vram-gb", "8", "--gpu", "4060")
    assert plan.startswith("Fits (predicted).")
