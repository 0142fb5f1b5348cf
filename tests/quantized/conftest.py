"""These tests need the quantization libraries, which are not in the environment: they are found only when asked for."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline as it is before, saved."""
    from tests.quantized import pipelines as quantized_pipelines

    path = tmp_path_factory.mktemp("flux")
    quantized_pipelines.plain().save_pretrained(path)
    return path


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers loads bitsandbytes' kinds onto a GPU only, though they quantize on the CPU."""
    from diffusers.quantizers.bitsandbytes import BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer

    for quantizer in (BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer):
        monkeypatch.setattr(quantizer, "validate_environment", lambda self, *args, **kwargs: None)
        monkeypatch.setattr(quantizer, "update_device_map", lambda self, device_map: {"": "cpu"})


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the modules alone, which import those libraries, unless the marker is asked for."""
    is_asked_for = "quantized" in config.option.markexpr.replace("not quantized", "")
    return None if is_asked_for or not collection_path.name.startswith("test_") else True
