"""Everything here runs on the null card: `make nullcuda`."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test in this folder its marker."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("nullcuda")


@pytest.fixture(autouse=True)
def on_the_null_card(request: pytest.FixtureRequest) -> None:
    """Fail with one line where someone asks for these tests by themselves."""
    if not request.config.pluginmanager.has_plugin("tests.nullcuda.plugin"):
        pytest.fail("this test needs the null card: `make nullcuda`", pytrace=False)
