import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.cli_runner import check_text, run
from tests.reports.test_doctor import GPU, MACHINE, with_device
from vramtune.machine import doctor
from vramtune.schema import Holder
from vramtune.units import GIB


@pytest.fixture
def machine(monkeypatch):
    """Says what is found instead of this machine."""

    def say(found):
        monkeypatch.setattr(doctor, "examine", lambda: found)

    return say


def test_a_machine_without_fault_ends_with_0(machine):
    machine(MACHINE)
    result = run("doctor")
    assert (result.exit_code, result.stderr) == (0, "")
    check_text("doctor_ready.txt", result.stdout)


def test_a_machine_that_lacks_something_ends_with_1_and_says_what_to_do(machine):
    machine(replace(MACHINE, torch_build="CPU only", driver=None, accelerator=None))
    result = run("doctor")
    assert (result.exit_code, result.stderr) == (1, "")
    check_text("doctor_without_gpu.txt", result.stdout)


def test_what_only_deserves_attention_ends_with_0(machine):
    slow = with_device(usable_bytes=4 * GIB, pinned_copy_bytes_per_second=3e9)
    holder = Holder(pid=4711, name="/usr/bin/python3", num_bytes=3 * GIB)
    machine(replace(slow, accelerator=replace(slow.accelerator, holders=(holder,))))
    result = run("doctor")
    assert result.exit_code == 0
    check_text("doctor_attention.txt", result.stdout)


def test_it_is_one_json_object(machine):
    machine(MACHINE)
    assert json.loads(run("doctor", "--json").stdout)["ready"] is True
    machine(replace(MACHINE, accelerator=replace(GPU, device=None, error="CUDA out of memory")))
    result = run("doctor", "--json")
    assert (result.exit_code, json.loads(result.stdout)["ready"]) == (1, False)


def test_the_installed_program_looks_at_this_machine():
    program = Path(sys.executable).with_name("vramtune")
    done = subprocess.run([program, "doctor", "--json"], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["ready"] else 1)
    assert {check["status"] for check in found["checks"][:5]} == {"ok"}, "Python and the packages are as required"
    assert found["machine"]["torch_build"] is not None
