"""Compiles `csrc/` once per content, into `build/simgpu/` of the checkout, and imports it."""

import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

import torch
from torch.utils import cpp_extension

NAME = "vramtune_simgpu"
SOURCES = Path(__file__).with_name("csrc")
CACHE = Path(__file__).parents[2] / "build" / "simgpu"
FLAGS = ["-O1", "-std=c++20"]


class SimBuildError(RuntimeError):
    """The simulated accelerator cannot be compiled here; says in one line what to install."""


@functools.cache
def extension() -> ModuleType:
    """The compiled extension: built if no library of these sources, this torch and this Python is cached.

    It is built in a folder of its own and then moved, so that two builds at a time, or one that was killed,
    leave no half library and no lock behind.
    """
    library = CACHE / f"{NAME}-{fingerprint()}.so"
    if library.exists():
        return import_library(library)
    require_tools()
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        main = str(SOURCES / "sim.cpp")
        built: ModuleType = cpp_extension.load(NAME, [main], extra_cflags=FLAGS, build_directory=folder)
        Path(folder, f"{NAME}.so").replace(library)
    return built


def fingerprint() -> str:
    """A hash of all that decides what the library contains."""
    digest = hashlib.sha256(repr((torch.__version__, sys.implementation.cache_tag, FLAGS)).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def import_library(path: Path) -> ModuleType:
    """The extension module in a library file, whatever the file is called."""
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(path))
    spec = importlib.util.spec_from_loader(NAME, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def require_tools() -> None:
    """A `SimBuildError` that names the package to install, where a tool of the build is missing."""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise SimBuildError(
            f"The simulated accelerator needs a C++ compiler and found none ({compiler!r} is not on the PATH): "
            "install one, on Debian or Ubuntu with `apt install g++`."
        )
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise SimBuildError(
            "The simulated accelerator needs Python's C headers and found no Python.h: "
            "install them, on Debian or Ubuntu with `apt install python3-dev`."
        )
    if not cpp_extension.is_ninja_available():
        raise SimBuildError("The simulated accelerator needs ninja and found none: `pip install ninja`.")
