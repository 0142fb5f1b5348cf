"""These tests need the quantization libraries, which are not in the environment: they are found only when asked for."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the modules alone, which import those libraries, unless the marker is asked for."""
    is_asked_for = "quantized" in config.option.markexpr.replace("not quantized", "")
    return None if is_asked_for or not collection_path.name.startswith("test_") else True
