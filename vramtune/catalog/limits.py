"""How large a pipeline in a folder may be: looked at before its files are read, and while its modules are made.

Whoever wrote a folder chose its numbers. Limits are several times what the largest known pipelines have.
"""

import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_module_registration_hook
from torch.overrides import TorchFunctionMode

from vramtune.errors import FileError, UsageError

MAX_FILES = 10_000
MAX_CONFIG_BYTES = 2**20
MAX_READ_BYTES = 2**26
"""Of what tokenizers read: Gemma's vocabulary is 33 MB."""
READ = (".json", ".txt", ".model", ".jinja")
"""Suffixes of files that are read whole; of weight files only the header is."""
MAX_LAYERS = 1000
"""Of a list in a configuration, and of a number of modules: 128 experts, 64 layers."""
COUNTS = re.compile(r"\b(num|n)_\w*(layers?|blocks?|experts?)\b|(layers|layers_per_block|depths?|blocks|experts)$")
"""Names of numbers that say how many modules there are."""
MAX_NUMBER = 2**31
MAX_MODULES = 10_000
"""Of a component: LTX-2.3's transformer has 4,000."""
MAX_NUMEL = 2**30
"""Of a tensor: FLUX.2's largest weight has 3.4e8 numbers."""


def check_files(folder: Path) -> None:
    """Raise a `FileError` for a folder with a file in it, or in a component's folder, that might never end."""
    places = [folder, *(path for path in _content(folder) if path.is_dir())]
    for path in (path for place in places for path in _content(place)):
        try:
            status = path.stat()
        except FileNotFoundError:  # a link into a cache that was not filled: who needs the file will say so
            continue
        if stat.S_ISDIR(status.st_mode):
            continue
        if not stat.S_ISREG(status.st_mode):
            raise FileError(f"{str(path)!r} is not a regular file: nothing in this folder is read.")
        limit = MAX_CONFIG_BYTES if "config" in path.name else MAX_READ_BYTES
        if path.suffix in READ and status.st_size > limit:
            raise FileError(f"{str(path)!r} has {status.st_size} bytes; at most {limit} are expected of such a file.")


def _content(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        content = [Path(entry.path) for entry in islice(entries, MAX_FILES + 1)]
    if len(content) > MAX_FILES:
        raise FileError(f"{str(folder)!r} holds more than {MAX_FILES} files: no pipeline does.")
    return content


def check_config(config: Mapping[str, Any], *, component: str) -> None:
    """Raise a `UsageError` for a module's configuration with numbers that no module can have."""
    for name, number in _numbers(config):
        limit = MAX_LAYERS if COUNTS.search(name) else MAX_NUMBER
        if number > limit:
            raise UsageError(
                f"The component {component!r} cannot be built: its configuration says {name}={number:.6g}; at most "
                f"{limit} are possible here."
            )


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a configuration, by the nearest name; a list too long is an infinite one."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _numbers(each, str(key))
    elif isinstance(value, list):
        if len(value) > MAX_LAYERS:
            yield f"length of {name}", math.inf
        for each in value:
            yield from _numbers(each, name)
    elif isinstance(value, int):
        yield name, value


@contextmanager
def bounded(component: str) -> Iterator[None]:
    """Let a module be made; a `UsageError` where it becomes too large, before it takes time or memory."""
    num_modules = 0

    def count(module: torch.nn.Module, name: str, child: torch.nn.Module | None) -> None:
        nonlocal num_modules
        num_modules += 1
        if num_modules > MAX_MODULES:
            raise UsageError(f"The component {component!r} cannot be built: it has more than {MAX_MODULES} modules.")

    handle = register_module_module_registration_hook(count)
    try:
        with _Bounded(component):
            yield
    finally:
        handle.remove()


class _Bounded(TorchFunctionMode):
    """Refuses tensors that are too large, and leaves out the random numbers of weights that nobody will read."""

    SIZED = frozenset((torch.empty, torch.zeros, torch.ones, torch.full, torch.randn, torch.rand))
    RANDOM = frozenset((torch.Tensor.uniform_, torch.Tensor.normal_))

    def __init__(self, component: str) -> None:
        super().__init__()
        self._component = component

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in self.RANDOM:
            return args[0]
        if func in self.SIZED:
            self._check(args[0] if args and isinstance(args[0], tuple | list) else args)
        return func(*args, **(kwargs or {}))

    def _check(self, shape: tuple[Any, ...] | list[Any]) -> None:
        numel = 1
        for size in shape:
            numel *= size if isinstance(size, int) else 1
        if numel > MAX_NUMEL:
            raise UsageError(
                f"The component {self._component!r} cannot be built: one of its tensors has {numel:.3g} numbers; at most "
                f"{MAX_NUMEL} are expected."
            )
