"""For all tests: the same examples every time, the simulated accelerator as a fixture, log lines for `caplog`."""

import gc
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# before torch is imported, and for child processes too: the operations are tiny, threads would wait for one another
os.environ["OMP_NUM_THREADS"] = "1"
CACHE = Path(tempfile.gettempdir()) / f"vramtune-tests-{os.getpid()}"
# not the user's own, nor for child processes
os.environ["VRAMTUNE_CACHE"] = str(CACHE)

pytest_plugins = ["tests.simgpu.fixtures"]

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def flux_in_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny FLUX.1, its weights in several safetensors files; only to be read."""
    from tests import tiny_pipelines

    folder = tmp_path_factory.mktemp("flux")
    tiny_pipelines.build("flux").save_pretrained(folder, max_shard_size="200KB")
    return folder


def pytest_collection_finish() -> None:
    """Every collection would walk all that torch, diffusers and transformers are made of, and tests ask for many."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    """Of a GPU no test knows what another one measured."""
    yield
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(autouse=True)
def log_lines_reach_caplog() -> Iterator[None]:
    """pytest listens at the root logger; the package's own lines do not go there otherwise."""
    logger = logging.getLogger("vramtune")
    before = logger.propagate
    logger.propagate = True
    yield
    logger.propagate = before
