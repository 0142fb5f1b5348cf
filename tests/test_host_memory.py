"""What this process may have of the host's memory, with the limits of control groups as Linux writes them."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from vramtune import host_memory
from vramtune.mapped_files import MappedFiles
from vramtune.units import GIB, MIB

Write = Callable[[str, str], None]


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """A machine of 64 GiB with 40 free; returns a function that writes one of its files."""
    monkeypatch.setattr(host_memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(host_memory, "CONTROL_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB, available=40 * GIB))

    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    return write


def test_without_control_groups_it_is_what_the_machine_has_free_but_for_a_reserve(system: Write) -> None:
    assert host_memory.total_bytes() == 64 * GIB
    assert host_memory.available_bytes() == 40 * GIB
    assert host_memory.usable_bytes() == 40 * GIB - host_memory.RESERVE_BYTES
    assert host_memory.lockable_bytes() == int(host_memory.LOCKED_FRACTION * 64 * GIB)


def test_in_a_container_its_limit_counts_less_what_is_used_of_it_but_for_page_cache(system: Write) -> None:
    system("proc/self/cgroup", "0::/jobs/17\n")
    system("cgroup/jobs/17/memory.max", f"{16 * GIB}\n")
    system("cgroup/jobs/17/memory.current", f"{10 * GIB}\n")
    system("cgroup/jobs/17/memory.stat", f"anon {4 * GIB}\ninactive_file {5 * GIB}\n")
    assert host_memory.total_bytes() == 16 * GIB
    assert host_memory.available_bytes() == 11 * GIB


def test_the_first_version_of_the_interface_has_other_names(system: Write) -> None:
    system("proc/self/cgroup", "4:memory:/a\n")
    system("cgroup/memory/a/memory.limit_in_bytes", f"{8 * GIB}\n")
    system("cgroup/memory/a/memory.usage_in_bytes", f"{6 * GIB}\n")
    system("cgroup/memory/a/memory.stat", f"inactive_file 1\ntotal_inactive_file {3 * GIB}\n")
    assert host_memory.available_bytes() == 5 * GIB


def test_a_group_that_is_full_leaves_nothing(system: Write) -> None:
    system("proc/self/cgroup", "0::/\n")
    system("cgroup/memory.max", f"{GIB}\n")
    system("cgroup/memory.current", f"{2 * GIB}\n")
    assert host_memory.available_bytes() == host_memory.usable_bytes() == 0


def test_memory_that_was_freed_is_given_back() -> None:
    host_memory.give_back_freed()


def test_a_mapped_tensor_is_in_its_file_and_others_are_in_none(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(MIB))
    storage = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=MIB)
    mapped = torch.empty(0, dtype=torch.uint8).set_(storage, MIB // 2, (100,), (1,))
    ordinary = torch.zeros(100)
    files = MappedFiles()
    assert files.file_of(mapped) == file
    assert files.file_of(ordinary) is None
    assert files.file_of(torch.empty(0)) is None
    assert files.file_of(torch.empty(100, device="meta")) is None


def test_without_linux_nothing_is_known_to_be_mapped(system: Write) -> None:
    assert MappedFiles().file_of(torch.zeros(100)) is None


def resident_bytes(file: Path) -> int:
    """What of a file this process has mapped and in memory."""
    found, is_file = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            is_file = words[-1] == str(file)
        elif is_file and words[0] == "Rss:":
            found += 1024 * int(words[1])
    return found


def test_what_was_read_of_a_file_is_let_go_and_what_was_written_stays(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(8 * MIB))
    storage = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=8 * MIB)
    mapped = torch.empty(0, dtype=torch.uint8).set_(storage)
    first, middle, last = mapped[: 2 * MIB], mapped[2 * MIB + 100 : 6 * MIB], mapped[6 * MIB :]
    assert mapped.sum() == 0
    middle[MIB] = 7
    assert mapped.sum() == 7  # a write into a huge page unmaps the rest of it
    assert resident_bytes(file) == 8 * MIB
    MappedFiles().let_go([first, torch.zeros(3)])
    assert resident_bytes(file) == 6 * MIB
    MappedFiles().let_go([middle, last])
    assert resident_bytes(file) < MIB // 10
    assert (middle[MIB], mapped.sum()) == (7, 7)
    MappedFiles().let_go([mapped])
    assert mapped.sum() == 7
    assert file.read_bytes() == bytes(8 * MIB)


def test_where_it_is_not_told_which_pages_were_written_nothing_is_let_go(tmp_path: Path, system: Write) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(MIB))
    mapped = torch.from_file(str(file), shared=False, size=MIB, dtype=torch.uint8)
    maps = Path("/proc/self/maps").read_text()
    mapped.fill_(3)
    system("proc/self/maps", maps)
    files = MappedFiles()
    assert files.file_of(mapped) == file
    files.let_go([mapped])
    assert mapped.sum() == 3 * MIB
