"""The simulated GPU of the tests and a tiny pipeline, in place of a real GPU and a model from the Hub."""

from diffusers import DiffusionPipeline
from IPython.display import display

from tests import simgpu, tiny_pipelines
from vramtune.units import GIB

NOTE = (
    "SIMULATED. Everything shown below was made on a simulated GPU, with a tiny pipeline of random weights, in virtual "
    "time. No figure is one of a real GPU or of a real model. Run this notebook to see yours."
)


def prepare() -> tuple[str, float, dict[str, object]]:
    """Make the simulated GPU this process's, write the pipeline here; the notebook's parameters for it."""
    simgpu.load().set_capacity(GIB)
    tiny_pipelines.larger_flux().save_pretrained("tiny-flux")
    DiffusionPipeline._progress_bar_config = {"disable": True}  # bars would show how fast this machine is
    display({"text/plain": NOTE, "text/html": f"<p><strong>{NOTE}</strong></p>"}, raw=True)
    size = {"height": 32, "width": 32, "max_sequence_length": 48}
    return "tiny-flux", 0.03, {"prompt": "a red fox in the snow", "num_inference_steps": 4, **size}
