"""Answers about the catalog's models where torch and diffusers are not installed: the same as where they are."""

import json
import re
import subprocess
import sys

import pytest

from vramtune import predict

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "scipy")
WITHOUT = f"""
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, NotInstalled())
"""
RUN = """
import sys
from vramtune.cli import main
main()
"""


def run(*arguments, before=""):
    code = f"{before}{RUN}"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize(
    "command",
    [
        ("plan", "sdxl", "--vram-gb", "8", "--gpu", "4060"),
        ("plan", "flux.1-dev", "--vram-gb", "8", "--gpu", "4060", "--steps", "20", "--json"),
        ("plan", "wan2.1-14b", "--vram-gb", "8", "--gpu", "4060"),
        ("compare", "sdxl", "--vram-gb", "6", "--gpu", "3060", "--allow", "fp8_weights"),
        ("profile", "sd15", "--gpu", "A100 80GB"),
        ("models",),
        ("gpus",),
    ],
    ids=" ".join,
)
def test_a_command_says_the_same_without_them(command):
    without = run(*command, before=WITHOUT)
    assert without.stderr == ""
    assert (without.stdout, without.returncode) == ((whole := run(*command)).stdout, whole.returncode)
    assert without.returncode in (0, 3)
    if "--json" in command:
        json.loads(without.stdout)  # no library prints beside it


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("plan", "sdxl", "--vram-gb", "8", "--gpu", "4060", "--height", "512"), "To build a pipeline needs torch and"),
        (("plan", "org/name", "--vram-gb", "8", "--gpu", "4060"), "To build a pipeline needs torch and diffusers and"),
        (
            ("plan", "sdxl", "--vram-gb", "8"),
            "To measure this machine's GPU needs torch and .* Or name a GPU: --gpu \"RTX",
        ),
    ],
    ids=["other settings", "Hub", "this GPU"],
)
def test_what_needs_them_says_which_extra_has_them(command, said):
    done = run(*command, before=WITHOUT)
    assert done.returncode == 2
    assert re.search(said, done.stderr)
    assert 'pip install "vramtune[pipelines]"' in done.stderr


def test_doctor_says_that_they_are_missing():
    done = run("doctor", before=WITHOUT)
    assert done.returncode == 1
    assert "torch" in done.stdout
    assert "Traceback" not in done.stderr


def test_other_steps_need_no_new_trace():
    call = predict.ModelCall(model="flux.1-dev", settings={"steps": 20})
    trace = predict.trace_model(call, arguments=lambda *_: pytest.fail("it was known"))
    assert trace.workload.call_kwargs == {"num_inference_steps": 20}
