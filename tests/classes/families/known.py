"""The seven pipelines that all tests share (`tests/tiny_pipelines.py`)."""

from collections.abc import Callable

from diffusers import DiffusionPipeline

from tests import tiny_pipelines
from tests.classes.families.family import FAMILIES, Family


def _family(name: str, build: Callable[[], DiffusionPipeline]) -> Family:
    return Family(name, build, tiny_pipelines.CALL[name])


FAMILIES |= {name: _family(name, build) for name, build in tiny_pipelines.BUILDERS.items()}
