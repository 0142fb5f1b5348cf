import csv
import subprocess
import sys
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramtune.errors import NoAcceleratorError, UnknownNameError, UsageError
from vramtune.machine import gpus
from vramtune.units import GIB, MIB


@pytest.mark.parametrize(
    "name", ["4060", "rtx4060", "RTX 4060", "GeForce RTX 4060", "nvidia geforce rtx 4060", "RTX 4060 8GB"]
)
def test_a_name_is_matched_whatever_its_brand_and_spelling(name: str) -> None:
    assert gpus.find_gpu(name).name == "RTX 4060"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("H100", "H100 80GB SXM"),
        ("a100", "A100 80GB SXM"),
        ("A100 40gb", "A100 40GB"),
        ("H200", "H200 SXM"),
        ("4060 Ti 16GB", "RTX 4060 Ti 16GB"),
        ("Tesla T4", "T4"),
        ("3060", "RTX 3060"),
    ],
)
def test_a_short_name_means_the_card_that_its_alias_says(name: str, meant: str) -> None:
    assert gpus.find_gpu(name).name == meant


def test_cards_that_differ_in_memory_must_be_told_apart() -> None:
    with pytest.raises(UsageError, match="'RTX 4060 Ti 8GB' or 'RTX 4060 Ti 16GB'"):
        gpus.find_gpu("4060 Ti")


@pytest.mark.parametrize("name", ["4061", "RTX 4060 Laptop GPU", "Radeon RX 7900 XTX", ""])
def test_an_unknown_name_lists_known_ones(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"RTX 4060|RTX 5070"):
        gpus.find_gpu(name)


@given(
    st.sampled_from(gpus.gpu_names()),
    st.sampled_from(["{}", "NVIDIA {}", "GeForce {}", " {}\t"]),
    st.booleans(),
)
def test_every_listed_name_finds_its_own_card(name: str, form: str, shout: bool) -> None:
    asked = form.format(name.upper() if shout else name.lower())
    assert gpus.find_gpu(asked).name == name


def test_no_name_means_two_cards() -> None:
    names = [name for card in gpus._cards() for name in card.names]
    assert len(names) == len(set(names))


def test_the_facts_of_a_card_are_those_of_its_data_sheet() -> None:
    gpu = gpus.find_gpu("RTX 4090")
    assert gpu.total_bytes == 24 * GIB
    assert gpu.flops_per_second == {"float32": 82.6e12, "float16": 165.2e12, "bfloat16": 165.2e12}
    assert gpu.memory_bytes_per_second == 1008e9
    assert gpu.source == "predicted"


def test_turing_computes_bfloat16_in_float32() -> None:
    for name in ("T4", "RTX 2080 Ti"):
        flops = gpus.find_gpu(name).flops_per_second
        assert flops["bfloat16"] == flops["float32"] < flops["float16"]


def test_copies_follow_the_link() -> None:
    narrow, wide, newest = (gpus.find_gpu(name) for name in ("4060", "4090", "5090"))
    assert 2 * narrow.pinned_copy_bytes_per_second == pytest.approx(wide.pinned_copy_bytes_per_second)
    assert wide.pinned_copy_bytes_per_second == pytest.approx(25.2e9, rel=0.01)
    assert newest.pinned_copy_bytes_per_second == pytest.approx(50.4e9, rel=0.01)
    for gpu in gpus.gpus():
        assert gpu.readback_bytes_per_second <= gpu.pageable_copy_bytes_per_second
        assert gpu.pageable_copy_bytes_per_second <= gpu.pinned_copy_bytes_per_second / 2


def test_every_card_is_plausible() -> None:
    for gpu in gpus.gpus():
        assert 0.9 * gpu.total_bytes < gpu.usable_bytes < gpu.total_bytes
        assert gpu.flops_per_second["float32"] < gpu.flops_per_second["float16"]
        assert gpu.context_bytes == 500 * MIB
        assert gpu.workspace_bytes in (20 * MIB, 32 * MIB)


def test_every_fact_has_a_source_and_what_is_derived_is_a_column() -> None:
    with (files("vramtune.machine") / "gpus.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert row["source"]
        assert set(row["derived"].split()) <= {"float16_tflops", "usable_gib"}
        if "float16_tflops" in row["derived"]:
            ratio = 4 if row["architecture"] == "Turing" else 2  # float32 lanes: 64 or 128 a multiprocessor
            assert float(row["float16_tflops"]) == pytest.approx(
                ratio * float(row["float32_tflops"]), rel=0.01
            )


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine with one GPU, as NVML tells it; a test sets its name and memory."""
    gpu = SimpleNamespace(
        name="NVIDIA GeForce RTX 4060", total=8188 * MIB, free=7000 * MIB, closed=0, asked=[]
    )

    def handle(which: Any) -> str:
        gpu.asked.append(which)
        return "handle"

    def close() -> None:
        gpu.closed += 1

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", close)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", handle)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", handle)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: gpu.name)
    monkeypatch.setattr(
        pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(total=gpu.total, free=gpu.free)
    )
    return gpu


def test_this_gpu_has_the_facts_of_its_name_and_what_is_free(nvml: SimpleNamespace) -> None:
    gpu = gpus.this_gpu()
    assert gpu.name == "RTX 4060"
    assert gpu.usable_bytes == 7000 * MIB
    assert gpu.memory_bytes_per_second == gpus.find_gpu("RTX 4060").memory_bytes_per_second
    assert nvml.asked == [0]
    assert nvml.closed == 1


def test_this_gpu_promises_no_more_than_the_table(nvml: SimpleNamespace) -> None:
    nvml.free = nvml.total
    assert gpus.this_gpu() == gpus.find_gpu("RTX 4060")


@pytest.mark.parametrize(
    ("name", "total_mib", "meant"),
    [
        ("NVIDIA GeForce RTX 4060 Ti", 16380, "RTX 4060 Ti 16GB"),
        ("NVIDIA GeForce RTX 4060 Ti", 8188, "RTX 4060 Ti 8GB"),
        ("NVIDIA H100 80GB HBM3", 81559, "H100 80GB SXM"),
        ("NVIDIA H100 PCIe", 81559, "H100 80GB PCIe"),
        ("NVIDIA A100-SXM4-40GB", 40960, "A100 40GB"),
        ("NVIDIA A100-SXM4-80GB", 81920, "A100 80GB SXM"),
        ("NVIDIA A100 80GB PCIe", 81920, "A100 80GB PCIe"),
        ("NVIDIA H200", 143771, "H200 SXM"),
        ("NVIDIA B200", 183359, "B200 SXM"),
        ("NVIDIA L4", 23034, "L4"),
        ("NVIDIA A10G", 23028, "A10G"),
        ("Tesla T4", 15360, "T4"),
    ],
)
def test_the_driver_s_names_are_known(nvml: SimpleNamespace, name: str, total_mib: int, meant: str) -> None:
    nvml.name, nvml.total, nvml.free = name, total_mib * MIB, total_mib * MIB
    assert gpus.this_gpu().name == meant


@pytest.mark.parametrize(
    ("name", "total_mib"),
    [("NVIDIA GeForce RTX 4060 Laptop GPU", 8188), ("NVIDIA GeForce RTX 3060", 8192), ("Quadro P600", 2000)],
)
def test_a_gpu_that_is_not_in_the_table_is_not_guessed(
    nvml: SimpleNamespace, name: str, total_mib: int
) -> None:
    nvml.name, nvml.total = name, total_mib * MIB
    with pytest.raises(UsageError, match=f"{name}.*memory bandwidth.*unknown.*gpu="):
        gpus.this_gpu()


def test_the_first_visible_gpu_is_meant(nvml: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    for visible in ("2,0", "GPU-8f6d,GPU-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        gpus.this_gpu()
    assert nvml.asked == [2, "GPU-8f6d"]


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetHandleByIndex"])
def test_without_a_gpu_the_error_says_how_to_go_on(
    nvml: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def fail(*_: int) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, function, fail)
    with pytest.raises(NoAcceleratorError, match='gpu="RTX 4060"'):
        gpus.this_gpu()


def test_a_number_is_no_name() -> None:
    with pytest.raises(UsageError, match='"RTX 4060"; got 4060'):
        gpus.find_gpu(4060)  # type: ignore[arg-type]


def test_the_table_needs_no_torch() -> None:
    code = "import sys; from vramtune.machine import gpus; gpus.gpus(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
