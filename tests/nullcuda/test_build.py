import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nullcuda import build
from tests.nullcuda.build import NullCudaBuildError

ROOT = Path(__file__).parents[2]


def test_without_a_compiler_one_line_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NullCudaBuildError, match=r"^The null card needs .*'no-such-compiler'.*`apt install g\+\+`\.$"):
        build.require_tools()


def test_without_headers_one_line_says_what_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "HEADERS", tmp_path)
    with pytest.raises(NullCudaBuildError, match=r"found no cuda_runtime_api\.h in .*: run `make nullcuda`\.$"):
        build.require_tools()


def test_without_pytorchs_cuda_build_one_line_says_what_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "torch_libraries", lambda: tmp_path)
    with pytest.raises(
        NullCudaBuildError, match=r"^The null card needs PyTorch's CUDA build, .*: run `make nullcuda`\.$"
    ):
        build.require_tools()


def test_the_line_is_all_that_a_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**os.environ, "CXX": "no-such-compiler"}
    program = "import sys; from tests.nullcuda import build; build.fingerprint = lambda: 'not built'; import tests.nullcuda.__main__"
    done = subprocess.run(
        [sys.executable, "-c", program, "true"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("The null card needs a C++ compiler")
    assert done.stderr.count("\n") == 1


def test_functions_that_a_new_pytorch_wants_are_named() -> None:
    wanted = {"libcuda.so.1": {"cuInit", "cuNew"}, "libnew.so.1": {"newOne"}}
    with pytest.raises(NullCudaBuildError, match=r"lacks \(libcuda\.so\.1: cuNew; libnew\.so\.1: newOne\): write them"):
        build.refuse_unknown(wanted, {"libcuda.so.1": {"cuInit", "cuOld"}})


def test_this_pytorch_wants_functions_of_every_library_that_is_written_by_hand() -> None:
    wanted = build.imports(build.torch_libraries())
    assert wanted.keys() >= build.BY_HAND.keys() - {"libnvidia-ml.so.1"}  # which is opened by name
    assert {"cudaMalloc", "cudaHostRegister", "cudaStreamWaitEvent"} <= wanted[build.RUNTIME]


def test_the_list_of_functions_that_do_nothing_is_read_by_library() -> None:
    text = "# a comment\n\n[liba.so.1]\none two\nthree\n[libb.so.2]\n"
    assert build.zeros(text) == {"liba.so.1": {"one", "two", "three"}, "libb.so.2": set()}


def test_a_changed_source_is_another_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = build.fingerprint()
    for source in build.SOURCES.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    assert build.fingerprint() == before
    (tmp_path / "card.cpp").write_text("// another card")
    assert build.fingerprint() != before


def test_pytorch_runs_on_the_stubs_and_on_nothing_of_nvidias() -> None:
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
    ours = {Path(name).name for name in loaded if Path(name).is_relative_to(build.CACHE)}
    assert ours >= build.BY_HAND.keys()
    assert not {Path(name).name for name in loaded if not Path(name).is_relative_to(build.CACHE)} & ours


def test_of_two_processes_that_build_at_once_the_second_finds_the_first_ones(tmp_path: Path) -> None:
    mine, folder = tmp_path / "mine", tmp_path / "folder"
    for each, text in ((mine, "mine"), (folder, "the other's")):
        each.mkdir()
        (each / "lib").write_text(text)
    build.move(mine, folder)
    assert (folder / "lib").read_text() == "the other's"
    with pytest.raises(FileNotFoundError):
        build.move(tmp_path / "nothing", tmp_path / "new")
