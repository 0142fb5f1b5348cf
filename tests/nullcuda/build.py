"""Builds the stubs: a library in the place of each of NVIDIA's that PyTorch's CUDA build is linked to, or opens by name.

What PyTorch wants is read from its own libraries with `nm`. The functions that matter are in `csrc/`; those that `zeros.txt`
lists do nothing and return 0. A new version of PyTorch may want others: then the build says which.
"""

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = HERE / "csrc"
ZEROS = HERE / "zeros.txt"
CACHE = HERE.parents[1] / "build" / "nullcuda"
HEADERS = Path(sys.prefix, "cuda", "nvidia", "cu13", "include")
"""Where `make nullcuda` unpacks the headers' wheels."""
RUNTIME = "libcudart.so.13"
"""The stub that has the card: the others are linked to it."""
BY_HAND = {
    RUNTIME: ("card.cpp", "clock.cpp", "device.cpp", "memory.cpp", "streams.cpp", "kernels.cpp"),
    "libcuda.so.1": ("driver.cpp",),
    "libnvidia-ml.so.1": ("nvml.cpp",),
    "libcublas.so.13": ("blas.cpp",),
    "libcublasLt.so.13": ("blas.cpp",),
    "libcudnn.so.9": ("dnn.cpp",),
}
"""Sources by library."""
MACROS = {"libcublas.so.13": ("-DBLAS",), "libcublasLt.so.13": ("-DLT",)}
UNVERSIONED = {
    "nccl": "libnccl.so.2",
    "cuFile": "libcufile.so.0",
    "cusparseLt": "libcusparseLt.so.0",
    "curand": "libcurand.so.10",
    "nvml": "libnvidia-ml.so.1",
    "cu": "libcuda.so.1",
}
"""Prefixes of the symbols that carry no version, the longer first, and the libraries that have them."""
VERSIONS = {"NVSHMEM": "libnvshmem_host.so.3"}
"""Versions of symbols that are not their library's name."""
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-w")


class NullCudaBuildError(RuntimeError):
    """The stubs cannot be built here; says in one line what to do."""


def stubs() -> list[Path]:
    """The stub libraries, `libcudart` first; built if none of these sources and this PyTorch are cached."""
    folder = CACHE / fingerprint()
    if not folder.exists():
        require_tools()
        CACHE.mkdir(parents=True, exist_ok=True)
        # built apart and then moved: a build that is killed leaves no half of one
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            built = build(Path(scratch))
            move(built, folder)
    return [folder / RUNTIME, *sorted(library for library in folder.iterdir() if library.name != RUNTIME)]


def move(built: Path, folder: Path) -> None:
    """Put a finished build in its place, unless another process's is there by now."""
    try:
        built.rename(folder)
    except OSError:
        if not folder.exists():
            raise


def fingerprint() -> str:
    """A hash of all that decides what the stubs contain."""
    digest = hashlib.sha256(repr((version("torch"), FLAGS)).encode())
    for path in [Path(__file__), ZEROS, *sorted(SOURCES.iterdir())]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def require_tools() -> None:
    """A `NullCudaBuildError` that names what is missing, and how to get it."""
    for tool in (compiler(), "nm"):
        if shutil.which(tool) is None:
            raise NullCudaBuildError(
                f"The null card needs a C++ compiler and nm, and {tool!r} is not on the PATH: "
                "install them, on Debian or Ubuntu with `apt install g++`."
            )
    if not (HEADERS / "cuda_runtime_api.h").exists():
        raise NullCudaBuildError(
            f"The null card needs CUDA's headers and found no cuda_runtime_api.h in {HEADERS}: run `make nullcuda`."
        )
    if not (torch_libraries() / "libtorch_cuda.so").exists():
        raise NullCudaBuildError(
            f"The null card needs PyTorch's CUDA build, and torch {version('torch')} is none: run `make nullcuda`."
        )


def compiler() -> str:
    """The C++ compiler's command."""
    return os.environ.get("CXX", "c++")


def torch_libraries() -> Path:
    """The folder of PyTorch's own libraries, found without importing it."""
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "lib"


# ---------------------------------------------------------------------------------------------------
# What is wanted


def imports(libraries: Path) -> dict[str, set[str]]:
    """The functions that PyTorch's libraries import from NVIDIA's, by library."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for file in sorted(libraries.glob("*.so")):
        for symbol in symbols(file, "-D", "--undefined-only"):
            name, _, tag = symbol.partition("@")
            library = VERSIONS.get(tag.strip("@"), tag.strip("@")) or _library_of(name)
            if library.startswith(("libcu", "libn")):
                wanted[library].add(name)
    return wanted


def _library_of(name: str) -> str:
    return next((library for prefix, library in UNVERSIONED.items() if re.match(rf"p?{prefix}[A-Z]", name)), "")


def symbols(file: Path, *options: str) -> list[str]:
    """The names that `nm` prints."""
    return [line.split()[-1] for line in run("nm", *options, file).splitlines() if " " in line]


def zeros(text: str) -> dict[str, set[str]]:
    """By library, the names of functions that do nothing and return 0, as `zeros.txt` lists them."""
    listed, names = dict[str, set[str]](), set[str]()
    for line in text.splitlines():
        if line.startswith("["):
            names = listed.setdefault(line.strip("[]"), set())
        elif not line.startswith("#"):
            names.update(line.split())
    return listed


def refuse_unknown(wanted: dict[str, set[str]], known: dict[str, set[str]]) -> None:
    """Raise `NullCudaBuildError` with the name of every function that PyTorch wants and no stub has."""
    unknown = {library: sorted(names - known.get(library, set())) for library, names in wanted.items()}
    named = "; ".join(f"{library}: {' '.join(names)}" for library, names in sorted(unknown.items()) if names)
    if named:
        raise NullCudaBuildError(
            f"torch {version('torch')} wants functions that the null card lacks ({named}): write them in {SOURCES.name}/, "
            f"or list in {ZEROS.name} those that may do nothing."
        )


# ---------------------------------------------------------------------------------------------------
# Compiling


def build(scratch: Path) -> Path:
    """Compile and link all stubs; the folder that they are in then."""
    wanted, listed = imports(torch_libraries()), zeros(ZEROS.read_text())
    built = scratch / "built"
    built.mkdir()
    pairs = [(library, source) for library, sources in BY_HAND.items() for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = list(pool.map(lambda pair: compile_one(*pair, scratch), pairs))
        objects: dict[str, list[Path]] = {library: [] for library in [RUNTIME, *BY_HAND, *listed]}
        written: dict[str, set[str]] = {library: set() for library in objects}
        for (library, _), file in zip(pairs, compiled, strict=True):
            objects[library].append(file)
            written[library].update(symbols(file, "-g", "--defined-only"))
        empty = {library: listed.get(library, set()) - written[library] for library in objects}
        refuse_unknown(wanted, {library: written[library] | empty[library] for library in objects})
        link = functools.partial(link_one, scratch=scratch, built=built)
        link(RUNTIME, objects[RUNTIME], empty[RUNTIME])
        others = [library for library in objects if library != RUNTIME]
        list(pool.map(lambda library: link(library, objects[library], empty[library]), others))
    return built


def compile_one(library: str, source: str, scratch: Path) -> Path:
    """One source of one library as an object file."""
    target = scratch / f"{library}.{source}.o"
    run(compiler(), *FLAGS, *MACROS.get(library, ()), f"-I{HEADERS}", "-c", SOURCES / source, "-o", target)
    return target


def link_one(library: str, objects: list[Path], empty: set[str], *, scratch: Path, built: Path) -> None:
    """One library of its objects and its empty functions."""
    source = scratch / f"{library}.empty.c"
    lines = [f'int {name}(void) {{ nullcuda_trace("{name} does nothing"); return 0; }}' for name in sorted(empty)]
    source.write_text("\n".join(["void nullcuda_trace(const char *);", *lines, ""]))
    options: list[object] = [f"-Wl,-soname,{library}", "-o", built / library]
    if library not in UNVERSIONED.values():
        tag = next((version for version, name in VERSIONS.items() if name == library), library)
        script = scratch / f"{library}.map"
        script.write_text(f"{tag} {{ global: *; }};\n")
        options.append(f"-Wl,--version-script={script}")
    runtime = [] if library == RUNTIME else [built / RUNTIME]
    run(compiler(), "-shared", "-fPIC", "-w", *options, *objects, "-x", "c", source, "-x", "none", *runtime, "-ldl")


def run(*command: object) -> str:
    """A tool's output; a `NullCudaBuildError` with what it says where it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NullCudaBuildError(f"Building the null card failed in {command[0]}:\n{done.stderr}")
    return done.stdout
