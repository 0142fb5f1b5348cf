"""The traces that come with the package are those that these versions make; `python -m benchmarks.shipped_traces` remakes them."""

from dataclasses import replace
from importlib import metadata

import pytest

from benchmarks.shipped_traces import made
from vramtune import catalog
from vramtune.catalog.shipped import shipped_file, shipped_trace
from vramtune.machine.gpus import gpus
from vramtune.schema import PERMISSIONS

MOST_BYTES = 4_000_000
"""Of all of them: the wheel stays below 5 MB."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "flux.1-dev"])
def test_a_fresh_trace_is_the_same(name):
    shipped, fresh = shipped_trace(name), made(name, try_steps=(30,))
    assert {30} < {*shipped.exact_steps}
    assert replace(fresh, exact_steps=shipped.exact_steps) == shipped


def test_every_model_has_one_and_all_are_small():
    files = [shipped_file(name) for name in catalog.names()]
    assert all(file.is_file() for file in files)
    assert sum(len(file.read_bytes()) for file in files) < MOST_BYTES


@pytest.mark.parametrize("name", ["sdxl", "wan2.1-14b"])
def test_it_knows_the_listed_gpus_all_permissions_and_its_versions(name):
    trace = shipped_trace(name)
    trace.check()
    sizes = {gpu.workspace_bytes for gpu in gpus()}
    assert all(sizes <= call.reserved.keys() for call in trace.calls)
    assert trace.permissions == PERMISSIONS
    assert trace.versions.keys() == {"torch", "diffusers", "transformers", "vramtune"}


def test_each_says_under_which_versions_it_was_made():
    made_under = {name: shipped_trace(name).versions for name in ("sd15", "flux.1-dev")}
    for versions in made_under.values():
        assert all(versions[library] == metadata.version(library) for library in ("diffusers", "transformers")), (
            "the libraries have changed since: remake the traces, `make traces`"
        )
