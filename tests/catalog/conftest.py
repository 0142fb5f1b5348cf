"""The pipelines of the catalog, each built once, when it is asked for."""

import gc

import pytest

from vramtune.catalog.pipelines import BUILDERS
from vramtune.contract import Pipeline


class Pipelines(dict[str, Pipeline]):
    """By the names of the catalog."""

    def __missing__(self, name: str) -> Pipeline:
        pipe = self.setdefault(name, BUILDERS[name]())
        gc.collect()
        gc.freeze()  # it lives as long as the session: a million objects that no collection need walk
        return pipe


@pytest.fixture(scope="session")
def pipelines() -> dict[str, Pipeline]:
    return Pipelines()
