import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from tests.reports import examples
from vramtune.reports.doctor import check_json, check_report, check_rows, is_ready
from vramtune.schema import Accelerator, Driver, Holder, Host, Machine, Package
from vramtune.units import GIB, MIB

PACKAGES = tuple(
    Package(name=name, required=required, installed=installed, is_supported=True)
    for name, required, installed in (
        ("Python", ">=3.11", "3.12.4"),
        ("accelerate", ">=1.15", "1.15.0"),
        ("diffusers", ">=0.42", "0.42.1"),
        ("rich", ">=13.9", "15.0.0"),
        ("torch", ">=2.11", "2.13.0+cu128"),
        ("transformers", ">=5.17", "5.23.0"),
    )
)
DEVICE = replace(examples.DEVICE, source="measured", workspace_bytes=20 * MIB)
GPU = Accelerator(
    label="cuda:0",
    count=1,
    name="NVIDIA GeForce RTX 4060",
    device=DEVICE,
    error=None,
    listed=examples.DEVICE,
    holders=(),
)
MACHINE = Machine(
    packages=PACKAGES,
    torch_build="CUDA 12.8",
    torch_error=None,
    driver=Driver(version="570.86", cuda_version="12.8", gpu="NVIDIA GeForce RTX 4060"),
    accelerator=GPU,
    host=Host(
        total_bytes=32 * GIB, available_bytes=24 * GIB, control_group_limit_bytes=None, locked_limit_bytes=8 * MIB
    ),
)


def with_device(**changes):
    return replace(MACHINE, accelerator=replace(GPU, device=replace(DEVICE, **changes)))


def row(machine, subject):
    return next(row for row in check_rows(machine) if row.subject == subject)


def shown(machine):
    file = io.StringIO()
    Console(file=file, width=80, markup=False, highlight=False).print(check_report(check_rows(machine)))
    return file.getvalue()


def test_a_machine_without_fault_is_ready_and_every_line_is_ok():
    rows = check_rows(MACHINE)
    assert is_ready(rows)
    assert {row.status for row in rows} == {"ok"}
    assert not any(row.advice for row in rows)
    assert shown(MACHINE).startswith("Ready: autotune works on this machine.")


def test_what_is_not_ok_says_what_to_do():
    broken = Machine(
        packages=tuple(replace(package, installed=None, is_supported=False) for package in PACKAGES),
        torch_build=None,
        torch_error="No module named 'torch'",
        driver=None,
        accelerator=None,
        host=replace(MACHINE.host, available_bytes=GIB),
    )
    rows = check_rows(broken)
    assert not is_ready(rows)
    assert all(row.advice for row in rows if row.status != "ok")
    assert 'pip install --upgrade "torch>=2.11".' in shown(broken)
    assert "torch build" not in shown(broken), "that it is not installed is said once"


def test_only_what_a_probe_timed_is_called_measured():
    measured = {row.subject for row in check_rows(MACHINE) if row.source == "measured"}
    assert measured == {
        "GPU context",
        "copies, pinned",
        "copies, pageable",
        "copies, overlapped",
        "arithmetic",
        "GPU memory rate",
    }
    assert " ".join(shown(MACHINE).split()).count(", measured") == len(measured)


def test_text_fits_80_columns():
    machine = replace(MACHINE, accelerator=replace(GPU, device=None, error="CUDA error: out of memory " * 9))
    for each in (MACHINE, machine):
        assert max(map(len, shown(each).splitlines())) <= 80


def test_json_is_one_object_with_the_facts():
    found = json.loads(check_json(MACHINE, check_rows(MACHINE)))
    assert found["ready"] is True
    assert found["machine"]["accelerator"]["device"]["total_bytes"] == 8 * GIB
    assert {check["status"] for check in found["checks"]} == {"ok"}


# Software


def test_a_package_that_is_too_old_is_missing_even_if_it_has_no_line_of_its_own():
    old = replace(PACKAGES[3], installed="12.0.0", is_supported=False)
    machine = replace(MACHINE, packages=(*PACKAGES[:3], old, *PACKAGES[4:]))
    assert (row(machine, "rich").status, row(machine, "rich").advice) == (
        "missing",
        'pip install --upgrade "rich>=13.9".',
    )
    assert row(machine, "other packages").finding == "0 of 1 as required"


def test_a_cpu_build_of_pytorch_beside_a_gpu():
    machine = replace(MACHINE, torch_build="CPU only", accelerator=None)
    assert row(machine, "torch build").status == "missing"
    assert "pytorch.org" in row(machine, "torch build").advice
    assert "RTX 4060, but PyTorch cannot use it" in row(machine, "GPU").finding


def test_a_cpu_build_is_no_fault_where_a_plugin_brings_the_accelerator():
    assert row(replace(MACHINE, torch_build="CPU only", driver=None), "torch build").status == "ok"


def test_a_pytorch_that_does_not_import():
    machine = replace(MACHINE, torch_build=None, torch_error="libcudart.so.12: no such file", accelerator=None)
    assert "libcudart" in row(machine, "torch build").finding


# GPU


@pytest.mark.parametrize(("cuda", "status"), [("13.0", "ok"), ("12.4", "ok"), ("11.8", "missing")])
def test_a_driver_must_run_pytorchs_major_version_of_cuda(cuda, status):
    driver = Driver(version="1.2", cuda_version=cuda, gpu="NVIDIA GeForce RTX 4060")
    assert row(replace(MACHINE, driver=driver), "NVIDIA driver").status == status


def test_another_makers_accelerator_needs_no_driver_of_nvidias_but_locked_memory():
    rows = check_rows(replace(MACHINE, driver=None, torch_build="ROCm 6.4"))
    assert "NVIDIA driver" not in {row.subject for row in rows}
    assert next(row for row in rows if row.subject == "locked memory").status == "attention"
    assert is_ready(rows)


def test_a_machine_without_a_gpu_is_told_what_works_all_the_same():
    machine = replace(MACHINE, driver=None, accelerator=None, torch_build="CPU only")
    assert row(machine, "NVIDIA driver").status == row(machine, "GPU").status == "missing"
    assert "--gpu" in row(machine, "GPU").advice


def test_a_probe_that_failed_names_who_holds_the_memory():
    gpu = replace(GPU, device=None, error="CUDA out of memory", holders=(Holder(pid=7, name=None, num_bytes=None),))
    judged = row(replace(MACHINE, accelerator=gpu), "GPU")
    assert (judged.status, "CUDA out of memory" in judged.finding) == ("missing", True)
    assert "a process (pid 7)" in judged.advice


def test_memory_that_others_hold_deserves_attention():
    holders = (
        Holder(pid=41, name="/usr/bin/python3", num_bytes=3 * GIB),
        Holder(pid=7, name="C:\\Windows\\dwm.exe", num_bytes=None),
    )
    gpu = replace(GPU, device=replace(DEVICE, usable_bytes=int(4.5 * GIB)), holders=holders)
    judged = row(replace(MACHINE, accelerator=gpu), "GPU memory")
    assert (judged.status, judged.finding) == ("attention", "4.50 GiB usable of 8.00 GiB")
    assert "python3 (pid 41) holds 3.00 GiB, dwm.exe (pid 7)." in judged.advice


@pytest.mark.parametrize(
    ("subject", "change"),
    [
        ("copies, pinned", {"pinned_copy_bytes_per_second": 5e9}),
        ("copies, overlapped", {"overlap_fraction": 0.4}),
        ("arithmetic", {"flops_per_second": {"float16": 9e12, "float32": 5e12}}),
    ],
)
def test_what_is_far_below_the_usual_deserves_attention_and_is_no_hindrance(subject, change):
    machine = with_device(**change)
    assert row(machine, subject).status == "attention"
    assert is_ready(check_rows(machine))


def test_a_card_that_is_not_in_the_table_is_held_against_nothing():
    gpu = replace(GPU, listed=None, device=replace(DEVICE, pinned_copy_bytes_per_second=1e9))
    assert row(replace(MACHINE, accelerator=gpu), "copies, pinned").status == "ok"


def test_one_of_several_says_which():
    assert row(replace(MACHINE, accelerator=replace(GPU, count=2)), "GPU").finding.endswith("(cuda:0, one of 2)")


# Host


def test_a_control_groups_limit_counts_if_it_is_below_what_there_is():
    limited = replace(MACHINE, host=replace(MACHINE.host, control_group_limit_bytes=4 * GIB))
    assert row(limited, "host memory").status == "attention"
    assert "4.00 GiB" in row(limited, "host memory").finding
    wide = replace(MACHINE, host=replace(MACHINE.host, control_group_limit_bytes=64 * GIB))
    assert row(wide, "host memory") == row(MACHINE, "host memory")


def test_memory_that_the_system_does_not_tell_is_unknown():
    host = replace(MACHINE.host, total_bytes=None, available_bytes=None)
    assert row(replace(MACHINE, host=host), "host memory").finding == "unknown on this system"
