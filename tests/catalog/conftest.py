"""The pipelines of the catalog, each built once, when it is asked for."""

import pytest
from diffusers import DiffusionPipeline

from vramtune.catalog.pipelines import BUILDERS


class Pipelines(dict[str, DiffusionPipeline]):
    """By the names of the catalog."""

    def __missing__(self, name: str) -> DiffusionPipeline:
        return self.setdefault(name, BUILDERS[name]())


@pytest.fixture(scope="session")
def pipelines() -> dict[str, DiffusionPipeline]:
    return Pipelines()
