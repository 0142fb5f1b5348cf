from types import ModuleType

import pytest
import torch

from tests import tiny_pipelines
from tests.offload.state import output


@pytest.fixture
def expected(sim: ModuleType) -> dict[str, torch.Tensor]:
    """Outputs of the tiny pipelines when they are all on the device."""
    names = ("flux", "sdxl", "wan")
    return {name: output(tiny_pipelines.build(name).to("sim"), name) for name in names}
