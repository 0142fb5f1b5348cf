from functools import cache
from types import ModuleType

import pytest
import torch

from tests import tiny_pipelines
from tests.offload.state import output


@pytest.fixture
def expected(sim: ModuleType) -> dict[str, torch.Tensor]:
    """Outputs of the tiny pipelines when they are all on the device."""
    return {name: output_resident(name) for name in ("flux", "sdxl", "wan")}


@cache
def output_resident(name: str) -> torch.Tensor:
    return output(tiny_pipelines.build(name).to("sim"), name)
