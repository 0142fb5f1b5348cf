from dataclasses import dataclass

import pytest

from tests.reports import examples
from vramtune import catalog, predict
from vramtune.catalog import kept
from vramtune.schema import Workload


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A profile in a file."""
    path = tmp_path_factory.mktemp("profiles") / "sdxl.json"
    examples.sdxl().save(path)
    return path


class ImagePipeline:
    def __call__(self, prompt=None, height=None, width=None, num_inference_steps=50, num_images_per_prompt=1):
        raise AssertionError("the command line never runs a pipeline itself")


@dataclass
class StandInTrace:
    workload: Workload


class Profiler:
    """Stands in for what follows a pipeline's call: remembers how it was asked."""

    def __init__(self):
        self.asked, self.quantized = {}, None
        self.error = None

    def load(self, model, *, quantize):
        self.quantized = quantize
        return ImagePipeline()

    def trace(self, pipe, *, call_kwargs, kernels, allow, on_call):
        self.asked |= {"call_kwargs": call_kwargs, "allow": allow}
        on_call("unet")
        if self.error is not None:
            raise self.error
        return StandInTrace(Workload(call_kwargs={}))

    def price(self, trace, device, *, permissions):
        assert isinstance(trace, StandInTrace)
        self.asked["gpu"], self.workload = device.name, trace.workload
        return examples.sdxl()


@pytest.fixture
def profiler(monkeypatch):
    stand_in = Profiler()
    monkeypatch.setattr(predict, "shipped_trace", lambda name: None)
    monkeypatch.setattr(kept, "kept_trace", lambda name: None)
    monkeypatch.setattr(kept, "keep", lambda name, trace: None)
    monkeypatch.setattr(predict, "trace_pipeline", stand_in.trace)
    monkeypatch.setattr(predict, "price", stand_in.price)
    monkeypatch.setattr(catalog, "load", stand_in.load)
    return stand_in
