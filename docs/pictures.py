"""Remake the pictures in `docs/img/`: real pipelines at real size, every figure predicted, no GPU and no weights.

python -m docs.pictures                    all, in about a minute
python -m docs.pictures idea wan_12gib     these
"""

import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from matplotlib.axes import Axes
from PIL import Image
from tqdm import tqdm

from docs import drawings
from tests import tiny_pipelines
from tests.offload.tuned_pipelines import planned
from vramtune import api, catalog
from vramtune.reports import plots
from vramtune.schema import Profile, Timeline
from vramtune.units import format_bytes

FOLDER = Path(__file__).parent / "img"
NUM_COLORS = 128
"""Colours in a picture's palette: no difference can be seen, and the file is a third as large."""


def main() -> None:
    """Draw the named pictures, or all, into their files."""
    for name in tqdm(sys.argv[1:] or PICTURES, unit="picture"):
        path = FOLDER / f"{name}.png"
        plots.save(PICTURES[name](), path)
        Image.open(path).convert("RGB").quantize(NUM_COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


@cache
def profile_of(model: str, gpu: str) -> Profile:
    """The profile of the pipeline's default call, traced once for all pictures."""
    return api.profile(catalog.load(model), gpu=gpu, progress=False)


def timeline_of(model: str, gpu: str, vram_gb: float, *, allow: tuple[str, ...] = ()) -> Timeline:
    """The default call under the plan for a budget."""
    profile = profile_of(model, gpu)
    return api.timeline(profile, api.plan(profile, vram_gb, allow=allow))


def memory(model: str, gpu: str, vram_gb: float, *, allow: tuple[str, ...] = ()) -> Axes:
    """Memory over one call."""
    return timeline_of(model, gpu, vram_gb, allow=allow).plot_memory()


def peaks(model: str, gpu: str, vram_gb: float) -> Axes:
    """What is on the GPU at the peak of each stage."""
    return timeline_of(model, gpu, vram_gb).plot_peaks()


def lanes(model: str, gpu: str, vram_gb: float) -> Axes:
    """Compute and copies of one step."""
    return timeline_of(model, gpu, vram_gb).plot_lanes()


def modes(model: str, gpu: str, vram_gb: float) -> Axes:
    """The plan beside the stock modes."""
    return api.compare(profile_of(model, gpu), vram_gb).plot()


def frontier(model: str, gpu: str) -> Axes:
    """Latency against VRAM."""
    return api.frontier(profile_of(model, gpu)).plot()


def components(model: str, gpu: str) -> Axes:
    """What each component costs."""
    return profile_of(model, gpu).plot()


def measured(name: str) -> Axes:
    """A tiny pipeline's estimate beside its second call on the simulated GPU, which the title names as such."""
    plan, pipe = planned(name), tiny_pipelines.build(name)
    with api.install(pipe, plan, device="sim") as installation:
        for _ in range(2):
            tiny_pipelines.run(pipe, name)
        measurement = installation.measured
    plot = plots.predicted_and_measured(measurement, plan=plan)
    title = (
        f"A tiny {plan.pipeline_class} with random weights, {format_bytes(plan.budget_bytes)} of a simulated GPU:\n"
        "predicted beside measured there; no real GPU was used"
    )
    return plots.draw_measured(replace(plot, title=title))


def table(model: str, gpu: str, vram_gb: float) -> Axes:
    """The plan as a table."""
    return drawings.draw_table(drawings.plan_table(timeline_of(model, gpu, vram_gb)))


def stream(model: str, gpu: str, vram_gb: float, *, first: int, num_groups: int) -> Axes:
    """Weight groups on their way through the slots."""
    timeline = timeline_of(model, gpu, vram_gb)
    return drawings.draw_stream(drawings.stream_passages(timeline, first=first, num_groups=num_groups))


PICTURES = {
    "idea": partial(table, "flux.1-dev", "RTX 4060", 8),
    "idea_stream": partial(stream, "flux.1-dev", "RTX 4060", 8, first=130, num_groups=10),
    "sdxl_6gib": partial(memory, "sdxl", "RTX 4060", 6),
    "sdxl_8gib": partial(memory, "sdxl", "RTX 4060", 8),
    "sdxl_12gib": partial(memory, "sdxl", "RTX 4070", 12),
    "sdxl_24gib": partial(memory, "sdxl", "RTX 4090", 24),
    "sdxl_8gib_peaks": partial(peaks, "sdxl", "RTX 4060", 8),
    "sdxl_8gib_modes": partial(modes, "sdxl", "RTX 4060", 8),
    "sdxl_frontier": partial(frontier, "sdxl", "RTX 4060"),
    "sdxl_components": partial(components, "sdxl", "RTX 4060"),
    "flux_6gib": partial(memory, "flux.1-dev", "RTX 4060", 6),
    "flux_8gib": partial(memory, "flux.1-dev", "RTX 4060", 8),
    "flux_12gib": partial(memory, "flux.1-dev", "RTX 4070", 12),
    "flux_24gib": partial(memory, "flux.1-dev", "RTX 4090", 24),
    "flux_12gib_peaks": partial(peaks, "flux.1-dev", "RTX 4070", 12),
    "flux_12gib_modes": partial(modes, "flux.1-dev", "RTX 4070", 12),
    "flux_6gib_lanes": partial(lanes, "flux.1-dev", "RTX 4090", 6),
    "flux_24gib_lanes": partial(lanes, "flux.1-dev", "RTX 4090", 24),
    "flux_frontier": partial(frontier, "flux.1-dev", "RTX 4090"),
    # no plan at 6 GiB: the transformer's activations alone take more, tiled or not
    "wan_8gib_tiled": partial(memory, "wan2.1-14b", "RTX 4060", 8, allow=("vae_tiling",)),
    "wan_12gib": partial(memory, "wan2.1-14b", "RTX 4070", 12),
    "wan_24gib": partial(memory, "wan2.1-14b", "RTX 4090", 24),
    "wan_24gib_peaks": partial(peaks, "wan2.1-14b", "RTX 4090", 24),
    "tiny_flux_measured_on_sim": partial(measured, "flux"),
}


if __name__ == "__main__":
    main()
