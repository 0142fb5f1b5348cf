"""All pipelines of the catalog, built once."""

import pytest
from diffusers import DiffusionPipeline

from vramtune.catalog.pipelines import BUILDERS


@pytest.fixture(scope="session")
def pipelines() -> dict[str, DiffusionPipeline]:
    return {name: build() for name, build in BUILDERS.items()}
