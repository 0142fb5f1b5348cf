import csv
import subprocess
import sys
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramtune.errors import UnknownNameError, UsageError
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
def test_a_short_name_means_the_gpu_that_its_alias_says(name: str, meant: str) -> None:
    assert gpus.find_gpu(name).name == meant


def test_a_name_that_two_memory_sizes_share_is_refused_with_both() -> None:
    with pytest.raises(UsageError, match="'RTX 4060 Ti 8GB' or 'RTX 4060 Ti 16GB'"):
        gpus.find_gpu("4060 Ti")


@pytest.mark.parametrize("name", ["4061", "RTX 4060 Laptop GPU", "Radeon RX 7900 XTX", ""])
def test_an_unknown_name_lists_known_ones(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"RTX 4060|RTX 5070"):
        gpus.find_gpu(name)


@given(st.sampled_from(gpus.gpu_names()), st.sampled_from(["{}", "NVIDIA {}", "GeForce {}", " {}\t"]), st.booleans())
def test_every_listed_name_finds_its_own_gpu(name: str, form: str, shout: bool) -> None:
    asked = form.format(name.upper() if shout else name.lower())
    assert gpus.find_gpu(asked).name == name


def test_no_name_means_two_gpus() -> None:
    names = [name for gpu in gpus._table() for name in gpu.names]
    assert len(names) == len(set(names))


def test_the_facts_of_a_gpu_are_those_of_its_data_sheet() -> None:
    gpu = gpus.find_gpu("RTX 4090")
    assert gpu.total_bytes == 24 * GIB
    assert gpu.flops_per_second == {
        "float32": 82.6e12,
        "float16": 165.2e12,
        "bfloat16": 165.2e12,
        "tensorfloat32": 82.6e12,
    }
    assert gpu.multiprocessors == pytest.approx(128, rel=0.02)
    assert gpu.memory_bytes_per_second == 1008e9
    assert gpu.source == "predicted"


def test_turing_computes_bfloat16_in_float32() -> None:
    for name in ("T4", "RTX 2080 Ti"):
        flops = gpus.find_gpu(name).flops_per_second
        assert flops["bfloat16"] == flops["float32"] < flops["float16"]


def test_copy_rates_follow_the_pci_express_link() -> None:
    narrow, wide, newest = (gpus.find_gpu(name) for name in ("4060", "4090", "5090"))
    assert 2 * narrow.pinned_copy_bytes_per_second == pytest.approx(wide.pinned_copy_bytes_per_second)
    assert wide.pinned_copy_bytes_per_second == pytest.approx(25.2e9, rel=0.01)
    assert newest.pinned_copy_bytes_per_second == pytest.approx(50.4e9, rel=0.01)
    for gpu in gpus.gpus():
        assert gpu.readback_bytes_per_second <= gpu.pageable_copy_bytes_per_second
        assert gpu.pageable_copy_bytes_per_second <= gpu.pinned_copy_bytes_per_second / 2


def test_the_memory_and_rates_of_every_gpu_are_plausible() -> None:
    for gpu in gpus.gpus():
        assert 0.9 * gpu.total_bytes < gpu.usable_bytes < gpu.total_bytes
        assert gpu.flops_per_second["float32"] < gpu.flops_per_second["float16"]
        assert 500 * MIB <= gpu.context_bytes <= 750 * MIB
        assert gpu.workspace_bytes in (20 * MIB, 32 * MIB)


def test_a_card_holds_what_its_power_limit_leaves_of_its_rate() -> None:
    limited, turing = gpus.find_gpu("T4"), gpus.find_gpu("RTX 2070")
    assert limited.flops_per_second["float16"] == pytest.approx(0.37 * 65e12)
    assert limited.efficiency_fraction == turing.efficiency_fraction
    assert limited.multiprocessors == pytest.approx(40, rel=0.1)


def test_every_line_of_the_table_names_its_source_and_its_derived_columns() -> None:
    with (files("vramtune.machine") / "gpus.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert row["source"]
        assert set(row["derived"].split()) <= {"float16_tflops", "usable_gib"}
        if "float16_tflops" in row["derived"]:
            ratio = 4 if row["architecture"] == "Turing" else 2  # float32 lanes: 64 or 128 a multiprocessor
            assert float(row["float16_tflops"]) == pytest.approx(ratio * float(row["float32_tflops"]), rel=0.01)


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
def test_a_driver_s_name_and_memory_find_the_gpu(name: str, total_mib: int, meant: str) -> None:
    assert gpus.gpu_of_driver(name, total_mib * MIB).name == meant


@pytest.mark.parametrize(
    ("name", "total_mib"),
    [("NVIDIA GeForce RTX 4060 Laptop GPU", 8188), ("NVIDIA GeForce RTX 3060", 8192), ("Quadro P600", 2000)],
)
def test_a_driver_s_gpu_that_is_not_listed_is_refused_not_guessed(name: str, total_mib: int) -> None:
    with pytest.raises(UsageError, match=f"{name}.*memory bandwidth.*unknown.*gpu="):
        gpus.gpu_of_driver(name, total_mib * MIB)


def test_a_number_instead_of_a_name_is_refused() -> None:
    with pytest.raises(UsageError, match='"RTX 4060"; got 4060'):
        gpus.find_gpu(4060)  # type: ignore[arg-type]


def test_the_table_is_read_without_torch_and_without_nvml() -> None:
    code = "import sys; from vramtune.machine import gpus; gpus.gpus(); assert not {'torch', 'pynvml'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
