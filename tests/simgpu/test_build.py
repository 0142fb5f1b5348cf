import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.simgpu import SimBuildError, build
from tests.simgpu.fixtures import load_or_fail

ROOT = Path(__file__).parents[2]


def run_python(program: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "CACHE", tmp_path)
    monkeypatch.setenv("CXX", "no-such-compiler")


def test_without_a_compiler_one_line_names_the_package(no_compiler: None) -> None:
    with pytest.raises(SimBuildError, match=r"needs a C\+\+ compiler .*'no-such-compiler'.* `apt install g\+\+`\.$"):
        build.extension.__wrapped__()


def test_without_python_headers_one_line_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "CACHE", tmp_path)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(SimBuildError, match=r"found no Python\.h: .* `apt install python3-dev`\.$"):
        build.extension.__wrapped__()


def test_a_test_that_needs_it_then_fails_with_that_line_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> ModuleType:
        raise SimBuildError("install this")

    monkeypatch.setattr("tests.simgpu.fixtures.load", load)
    with pytest.raises(pytest.fail.Exception, match=r"^install this$") as failure:
        load_or_fail()
    assert not failure.value.pytrace


@pytest.mark.slow
def test_a_built_library_is_used_again_without_a_compiler(sim: ModuleType) -> None:
    program = "from tests.simgpu import load; print(load().device_count())"
    assert run_python(program, PATH="", CXX="no-such-compiler") == "2\n"


def test_a_changed_source_is_another_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = build.fingerprint()
    for source in build.SOURCES.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    assert build.fingerprint() == before
    (tmp_path / "races.h").write_text("// other rules")
    assert build.fingerprint() != before


@pytest.mark.slow
def test_diffusers_sees_the_device_although_it_was_imported_first(sim: ModuleType) -> None:
    program = """
import diffusers.pipelines.pipeline_utils as pipeline_utils
from diffusers.utils.torch_utils import get_device
before = get_device(), pipeline_utils.SUPPORTED_DEVICE_MAP
from tests.simgpu import load
load()
print(*before[0:1], get_device(), *before[1])
"""
    assert run_python(program).split() == ["cpu", "sim", "balanced", "sim", "cpu"]
