"""Help, completion, and how little they import."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vramtune
from tests.cli.cli_runner import run
from vramtune import catalog

COMMANDS = ("plan", "compare", "frontier", "profile", "which", "sweep", "explore", "doctor", "models", "gpus")
HEAVY = {"torch", "diffusers", "scipy", "numpy", "matplotlib", "pandas", "msgspec", "rich", "pynvml"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_of_its_own(command):
    result = run(command, "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    examples = re.findall(r"^    vramtune (\w+)", result.stdout, re.MULTILINE)
    assert 2 <= len(examples) <= 4
    assert command in examples


@pytest.mark.parametrize("command", [(), *((command,) for command in COMMANDS)])
def test_help_is_plain_text_of_80_columns(command):
    found = run(*command, "--help").stdout
    assert max(map(len, found.splitlines())) <= 80
    assert found.isascii()


def test_every_command_is_listed_in_whole_sentences():
    found = in_a_process("--help").stdout  # the runner of tests has wider lines than a terminal of 80 columns
    lines = re.findall(r"^  (\w+) +(\w.*)$", found[found.index("Commands:") :], re.MULTILINE)
    assert [name for name, _ in lines] == list(COMMANDS)
    assert all(sentence.endswith(".") and not sentence.endswith("...") for _, sentence in lines)


def test_help_names_exit_codes_and_the_json_object():
    found = run("plan", "--help").stdout
    assert '"fits": true' in found
    assert "3 does not fit" in found


def test_no_arguments_show_the_help():
    result = run()
    assert "Commands:" in result.stdout + result.stderr


def test_version():
    assert run("--version").stdout == f"vramtune {vramtune.__version__}\n"


@pytest.mark.parametrize("command", ["--help", "plan --help", "--version"])
def test_help_imports_nothing_heavy(command):
    assert not imported_by(command.split()) & HEAVY


def test_a_plan_for_a_saved_profile_imports_neither_torch_nor_matplotlib(saved):
    found = imported_by(["plan", str(saved), "--vram-gb", "6"])
    assert not found & {"torch", "diffusers", "transformers", "accelerate", "matplotlib", "pandas", "pynvml"}


def test_a_report_of_a_saved_profile_imports_no_torch(saved, tmp_path):
    report = tmp_path / "report.html"
    found = imported_by(["plan", str(saved), "--vram-gb", "6", "--report", str(report)])
    assert report.exists()
    assert not found & {"torch", "diffusers", "transformers", "accelerate", "pandas", "pynvml"}


MODULES_AFTER = """
import sys
sys.argv = {arguments!r}
from vramtune.cli import main
try:
    main()
except SystemExit:
    pass
print(*sys.modules, file=sys.stderr)
"""


def in_a_process(*arguments):
    command = [sys.executable, "-c", MODULES_AFTER.format(arguments=["vramtune", *arguments])]
    environment = os.environ | {"COLUMNS": "80"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


def imported_by(arguments):
    return set(in_a_process(*arguments).stderr.split())


# Completion


def completed(*words):
    """What bash is offered for the last of the words."""
    environment = os.environ | {
        "_VRAMTUNE_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    command = [sys.executable, "-c", MODULES_AFTER.format(arguments=["vramtune"])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert not set(done.stderr.split()) & {"torch", "diffusers", "scipy", "numpy", "matplotlib", "pandas"}
    return done.stdout.split()


def test_commands_are_completed():
    assert completed("vramtune", "p") == ["plan", "profile"]


def test_models_are_completed():
    assert completed("vramtune", "plan", "sd") == [name for name in catalog.names() if name.startswith("sd")]
    assert completed("vramtune", "frontier", "FLUX.1-D") == ["FLUX.1-Dev"]


def test_gpus_are_completed_without_spaces_and_in_the_case_that_was_typed():
    assert completed("vramtune", "plan", "sdxl", "--gpu", "RTX-4090") == ["RTX-4090"]
    assert completed("vramtune", "compare", "sdxl", "--gpu", "rtx-409") == ["rtx-4090"]
    assert completed("vramtune", "profile", "sdxl", "--gpu", "409") == ["4090"]


def test_permissions_are_completed():
    assert completed("vramtune", "plan", "sdxl", "--allow", "vae") == ["vae_tiling"]


def test_completed_gpus_are_known():
    assert run("plan", "sdxl", "--gpu", "rtx-4060-Ti-16GB", "--vram-gb", "99").exit_code == 2
    assert "RTX 4060 Ti 16GB has 16.00 GiB" in run("compare", "x", "--gpu", "4060-Ti-16GB", "--vram-gb", "99").stderr


def test_a_shell_is_given_its_script():
    assert "_VRAMTUNE_COMPLETE=complete_bash" in in_bash("--show-completion", os.environ)


def test_a_shell_is_taught_for_good(tmp_path):
    said = in_bash("--install-completion", os.environ | {"HOME": str(tmp_path)})
    assert "bash completion installed" in said
    assert "vramtune" in (tmp_path / ".bashrc").read_text()


def in_bash(option, environment):
    """What the installed program prints; it looks at which shell its parent is."""
    program = Path(sys.executable).with_name("vramtune")
    command = ["bash", "-c", f"{program} {option}; true"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
