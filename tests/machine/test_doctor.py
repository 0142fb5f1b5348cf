"""What `doctor` reports: of the simulated GPU, and of files and packages as other machines have them."""

import resource
import sys
from importlib import metadata
from types import ModuleType, SimpleNamespace

import pynvml
import pytest
import torch

from tests.machine.conftest import TRUTH
from vramtune import host_memory
from vramtune.machine import doctor, nvml
from vramtune.schema import Driver
from vramtune.units import GIB, MIB

# Accelerator


def test_the_accelerator_s_memory_and_rates_are_measured(slow: ModuleType) -> None:
    slow.set_capacity(3 * GIB)
    found = doctor.examine().accelerator
    assert found is not None
    assert (found.label, found.count, found.name) == ("sim:0", 2, "simulated accelerator")
    assert (found.error, found.listed, found.holders) == (None, None, ())
    assert found.device is not None
    assert found.device.source == "measured"
    assert found.device.total_bytes == 3 * GIB
    for fact in ("pinned_copy_bytes_per_second", "pageable_copy_bytes_per_second"):
        assert getattr(found.device, fact) == pytest.approx(TRUTH[fact], rel=0.02)


def test_an_accelerator_without_room_to_measure_is_reported_with_its_error(slow: ModuleType) -> None:
    held = torch.empty(64 * MIB, dtype=torch.uint8, device="sim")
    slow.set_capacity(held.nbytes)
    found = doctor.examine().accelerator
    assert found is not None
    assert found.device is None
    assert found.error is not None
    assert "memory" in found.error
    assert "\n" not in found.error


def test_without_an_accelerator_the_driver_is_still_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(version="570", cuda_version="12.8", gpu="NVIDIA GeForce RTX 4060")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    monkeypatch.setattr(nvml, "driver", lambda: driver)
    found = doctor.examine()
    assert (found.accelerator, found.driver) == (None, driver)


def test_an_accelerator_of_a_listed_name_comes_with_its_line_of_the_table(
    slow: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow, "get_device_name", lambda device: "NVIDIA GeForce RTX 4060")
    found = doctor.examine().accelerator
    assert found is not None
    assert found.listed is not None
    assert found.listed.name == "RTX 4060"


# Driver


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that has a GPU."""
    answers = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlSystemGetDriverVersion": "570.86",
        "nvmlSystemGetCudaDriverVersion_v2": 12080,
        "nvmlDeviceGetHandleByIndex": "handle",
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=8 * GIB, free=7 * GIB),
        "nvmlDeviceGetName": "NVIDIA GeForce RTX 4060",
    }
    for name, value in answers.items():
        monkeypatch.setattr(pynvml, name, lambda *_, value=value: value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def fail(*_: object) -> None:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)


def test_a_driver_reports_its_version_its_newest_cuda_and_its_first_gpu(nvidia: None) -> None:
    assert nvml.driver() == Driver(version="570.86", cuda_version="12.8", gpu="NVIDIA GeForce RTX 4060")


def test_a_driver_without_a_gpu_for_cuda_is_reported_without_one(nvidia: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", fail)
    assert nvml.driver() == Driver(version="570.86", cuda_version="12.8", gpu=None)


def test_without_a_driver_none_is_reported(nvidia: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert nvml.driver() is None


# Software


def test_the_required_packages_are_those_of_the_metadata() -> None:
    found = {package.name: package for package in doctor.installed_packages()}
    assert len(found) == 1 + len(metadata.requires("vramtune") or ())
    assert found["Python"].required.startswith(">=3.")
    assert found["torch"].installed == metadata.version("torch")
    assert all(package.is_supported for package in found.values())


@pytest.mark.parametrize(
    ("version", "is_supported"),
    [("2.11", True), ("2.11.0+cu128", True), ("3.0.0.dev1", True), ("2.9.1", False), ("unknown", False)],
)
def test_versions_are_compared_by_their_numbers_not_their_builds(
    monkeypatch: pytest.MonkeyPatch, version: str, is_supported: bool
) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch>=2.11"])
    monkeypatch.setattr(metadata, "version", lambda name: version)
    torch_package = list(doctor.installed_packages())[1]
    assert (torch_package.installed, torch_package.is_supported) == (version, is_supported)


def test_a_package_that_is_not_installed_has_no_version_and_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["no-such-package>=1"])
    missing = list(doctor.installed_packages())[1]
    assert (missing.name, missing.installed, missing.is_supported) == ("no-such-package", None, False)


def test_a_pytorch_that_does_not_import_is_reported_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = doctor.examine()
    assert found.torch_build is found.accelerator is None
    assert found.torch_error is not None
    assert "torch" in found.torch_error


@pytest.mark.parametrize(
    ("cuda", "hip", "build"), [("12.8", None, "CUDA 12.8"), (None, "6.4.1", "ROCm 6.4.1"), (None, None, "CPU only")]
)
def test_the_build_of_pytorch_is_cuda_rocm_or_cpu_only(
    sim: ModuleType, monkeypatch: pytest.MonkeyPatch, cuda: str | None, hip: str | None, build: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert doctor.examine().torch_build == build


# Host


@pytest.fixture
def system(tmp_path, monkeypatch):
    """An empty Linux; returns a function that writes one of its files."""
    monkeypatch.setattr(host_memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(host_memory, "CONTROL_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    return write


def host():
    return doctor.examine().host


def test_total_and_available_memory_come_from_meminfo(system):
    system("proc/meminfo", "MemTotal:       1048576 kB\nMemFree:  5 kB\nMemAvailable:   524288 kB\n")
    assert (host().total_bytes, host().available_bytes) == (GIB, GIB // 2)


def test_without_meminfo_and_control_groups_memory_is_unknown(system):
    assert (host().total_bytes, host().available_bytes, host().control_group_limit_bytes) == (None, None, None)


def test_of_nested_control_groups_the_tightest_limit_counts(system):
    system("proc/self/cgroup", "0::/jobs/17\n")
    system("cgroup/jobs/17/memory.max", "max\n")
    system("cgroup/jobs/memory.max", f"{4 * GIB}\n")
    system("cgroup/memory.max", f"{6 * GIB}\n")
    assert host().control_group_limit_bytes == 4 * GIB


def test_in_a_container_the_limit_is_that_of_the_visible_root(system):
    system("proc/self/cgroup", "0::/host/path/that/is/not/here\n")
    system("cgroup/memory.max", f"{2 * GIB}\n")
    assert host().control_group_limit_bytes == 2 * GIB


def test_the_limit_of_control_groups_version_1_is_read(system):
    system("proc/self/cgroup", "9:cpu:/a\n4:memory:/a\n0::/\n")
    system("cgroup/memory/a/memory.limit_in_bytes", f"{3 * GIB}\n")
    system("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert host().control_group_limit_bytes == 3 * GIB


def test_the_limit_of_locked_memory_is_reported_and_none_where_unlimited(system, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (64 * MIB, resource.RLIM_INFINITY))
    assert host().locked_limit_bytes == 64 * MIB
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    assert host().locked_limit_bytes is None
