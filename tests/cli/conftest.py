import pytest

from tests.reports import examples
from vramtune import catalog, predict


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A profile in a file."""
    path = tmp_path_factory.mktemp("profiles") / "sdxl.json"
    examples.sdxl().save(path)
    return path


class ImagePipeline:
    def __call__(self, prompt=None, height=None, width=None, num_inference_steps=50, num_images_per_prompt=1):
        raise AssertionError("the command line never runs a pipeline itself")


class Profiler:
    """Stands in for what follows a pipeline's call: remembers how it was asked."""

    def __init__(self):
        self.asked, self.quantized = {}, None
        self.error = None

    def load(self, model, *, quantize):
        self.quantized = quantize
        return ImagePipeline()

    def predict_profile(self, pipe, *, call_kwargs, device, allow, on_call):
        self.asked |= {"call_kwargs": call_kwargs, "gpu": device.name, "allow": allow}
        on_call("unet")
        if self.error is not None:
            raise self.error
        return examples.sdxl()


@pytest.fixture
def profiler(monkeypatch):
    stand_in = Profiler()
    monkeypatch.setattr(predict, "predict_profile", stand_in.predict_profile)
    monkeypatch.setattr(catalog, "load", stand_in.load)
    return stand_in
