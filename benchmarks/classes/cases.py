"""The dummy pipelines of a checkout of diffusers: found, imported, built."""

import importlib
import importlib.util
import inspect
import re
import sys
import unittest
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from _pytest.outcomes import Skipped
from diffusers import DiffusionPipeline
from torch.utils._pytree import tree_map

from benchmarks.classes.outputs import seed_everything


@dataclass(frozen=True)
class Case:
    """One set of dummies: a test class of diffusers' that builds a pipeline."""

    pipeline: str
    """Name of the pipeline's class."""
    module: str
    test: str
    """Name of the test class."""

    @property
    def name(self) -> str:
        """Unique in a checkout: `FluxPipeline test_pipeline_flux.FluxPipelineFastTests`."""
        return f"{self.pipeline} {self.module.rpartition('.')[2]}.{self.test}"


class Dummies:
    """The pipeline and the arguments of one case, fresh each time."""

    def __init__(self, case: Case) -> None:
        kind = getattr(importlib.import_module(case.module), case.test)
        self.case = case
        self.pipeline_class: type[DiffusionPipeline] = kind.pipeline_class
        self.test = kind()
        self._set_up()

    def _set_up(self) -> None:
        """As unittest would, though it would skip deprecated pipelines."""
        try:
            getattr(self.test, "setUp", lambda: None)()
        except (unittest.SkipTest, Skipped):
            return

    def pipe(self) -> DiffusionPipeline:
        """A fresh one, on the host, in eval mode."""
        seed_everything()
        pipe = self.pipeline_class(**self.test.get_dummy_components())
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.to("cpu").eval()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def inputs(self, device: str = "cpu") -> dict[str, Any]:
        """Fresh arguments of a call, tensors on that device."""
        return self._on(device, self.test.get_dummy_inputs)

    def prepare(self, pipe: DiffusionPipeline) -> None:
        """LEDITS++ edits only an image that it has inverted."""
        if invert := getattr(self.test, "get_dummy_inversion_inputs", None):
            seed_everything()
            pipe.invert(**self._on(str(pipe._execution_device), invert))

    def _on(self, device: str, make: Any) -> dict[str, Any]:
        seed_everything()
        wants_device = "device" in inspect.signature(make).parameters
        made = make(device="cpu") if wants_device else make()
        return tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, made)


def take_over_tests(checkout: Path) -> None:
    """Give the name `tests` to diffusers' package: our own is imported as far as it is needed, and stays so."""
    for name in [name for name in sys.modules if name == "tests" or name.startswith("tests.")]:
        sys.modules[f"vramtune_{name}"] = sys.modules.pop(name)
    folder = checkout / "tests"
    spec = importlib.util.spec_from_file_location(
        "tests", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{folder} is no package")
    package = importlib.util.module_from_spec(spec)
    sys.modules["tests"] = package
    spec.loader.exec_module(package)


def find_cases(checkout: Path, only: str = "") -> tuple[list[Case], dict[str, str]]:
    """One case for every different set of dummies, and the modules that cannot be imported, with the reason."""
    cases: list[Case] = []
    failures: dict[str, str] = {}
    for path in sorted((checkout / "tests" / "pipelines").glob("*/**/test_*.py")):
        if "get_dummy_components" not in path.read_text():
            continue
        name = ".".join(path.relative_to(checkout).with_suffix("").parts)
        try:
            module = importlib.import_module(name)
        except (Exception, Skipped) as error:
            failures[path.stem] = f"{type(error).__name__}: {error}"
            continue
        cases += cases_of(module)
    return [case for case in cases if re.search(only, case.name)], failures


def cases_of(module: ModuleType) -> Iterator[Case]:
    known = set()
    for test in vars(module).values():
        if isinstance(test, type) and test.__module__ == module.__name__ and builds_a_pipeline(test):
            dummies = test.get_dummy_components.__qualname__, test.get_dummy_inputs.__qualname__
            key = test.pipeline_class, *dummies
            if key not in known:
                known.add(key)
                yield Case(test.pipeline_class.__name__, module.__name__, test.__name__)


def builds_a_pipeline(test: type) -> bool:
    """Whether a test class names its pipeline and makes components without being told how."""
    make = getattr(test, "get_dummy_components", None)
    if make is None or not isinstance(getattr(test, "pipeline_class", None), type):
        return False
    _, *wanted = inspect.signature(make).parameters.values()
    return not any(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in wanted)
