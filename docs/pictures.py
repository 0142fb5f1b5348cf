"""Remake the pictures in `docs/img/`: real pipelines at real size, every figure predicted, no GPU and no weights.

python -m docs.pictures
"""

from functools import cache, partial
from pathlib import Path

from matplotlib.axes import Axes
from tqdm import tqdm

from tests import tiny_pipelines
from tests.offload.tuned import planned
from vramtune import catalog, front
from vramtune.reports import plots
from vramtune.schema import Profile

FOLDER = Path(__file__).parent / "img"


def main() -> None:
    """Draw every picture into its file."""
    for name, draw in tqdm(PICTURES.items(), unit="picture"):
        plots.save(draw(), FOLDER / f"{name}.png")


@cache
def profile_of(model: str, gpu: str) -> Profile:
    """The pipeline's default call; traced once for all pictures."""
    return front.profile(catalog.load(model), gpu=gpu, progress=False)


def memory(model: str, gpu: str, vram_gb: float, *, allow: tuple[str, ...] = ()) -> Axes:
    """Memory over one call."""
    profile = profile_of(model, gpu)
    plan = front.plan(profile, vram_gb, allow=allow)
    return plots.draw_memory(
        plots.memory_over_call(front.timeline(profile, plan), profile=profile, plan=plan)
    )


def peaks(model: str, gpu: str, vram_gb: float) -> Axes:
    """What is on the GPU at each stage's peak."""
    profile = profile_of(model, gpu)
    plan = front.plan(profile, vram_gb)
    return plots.draw_peaks(plots.stage_peaks(front.timeline(profile, plan), profile=profile, plan=plan))


def lanes(model: str, gpu: str, vram_gb: float) -> Axes:
    """Compute and copies of one step."""
    profile = profile_of(model, gpu)
    plan = front.plan(profile, vram_gb)
    return plots.draw_lanes(plots.step_lanes(front.timeline(profile, plan), profile=profile, plan=plan))


def modes(model: str, gpu: str, vram_gb: float) -> Axes:
    """The plan beside the stock modes."""
    profile = profile_of(model, gpu)
    return plots.draw_modes(plots.mode_seconds(front.compare(profile, vram_gb), profile=profile))


def frontier(model: str, gpu: str) -> Axes:
    """Latency against VRAM."""
    profile = profile_of(model, gpu)
    return plots.draw_frontier(plots.latency_frontier(front.frontier(profile), profile=profile))


def components(model: str, gpu: str) -> Axes:
    """What each component costs."""
    return plots.draw_components(plots.component_costs(profile_of(model, gpu)))


def measured(name: str) -> Axes:
    """A tiny pipeline's estimate beside its second call on the simulated accelerator."""
    plan, pipe = planned(name), tiny_pipelines.build(name)
    with front.install(pipe, plan, device="sim") as installation:
        for _ in range(2):
            tiny_pipelines.run(pipe, name)
        measurement = installation.measured
    return plots.draw_measured(plots.predicted_and_measured(measurement, plan=plan))


PICTURES = {
    "sdxl_8gib": partial(memory, "sdxl", "RTX 4060", 8),
    "sdxl_8gib_peaks": partial(peaks, "sdxl", "RTX 4060", 8),
    "sdxl_8gib_modes": partial(modes, "sdxl", "RTX 4060", 8),
    "sdxl_frontier": partial(frontier, "sdxl", "RTX 4060"),
    "sdxl_components": partial(components, "sdxl", "RTX 4060"),
    "flux_6gib": partial(memory, "flux.1-dev", "RTX 4060", 6),
    "flux_6gib_lanes": partial(lanes, "flux.1-dev", "RTX 4090", 6),
    "flux_12gib_peaks": partial(peaks, "flux.1-dev", "RTX 4070", 12),
    "flux_12gib_modes": partial(modes, "flux.1-dev", "RTX 4070", 12),
    "flux_24gib_lanes": partial(lanes, "flux.1-dev", "RTX 4090", 24),
    "flux_frontier": partial(frontier, "flux.1-dev", "RTX 4090"),
    "wan_8gib_tiled": partial(memory, "wan2.1-14b", "RTX 4060", 8, allow=("vae_tiling",)),
    "wan_12gib": partial(memory, "wan2.1-14b", "RTX 4070", 12),
    "wan_24gib_peaks": partial(peaks, "wan2.1-14b", "RTX 4090", 24),
    "tiny_flux_measured_on_sim": partial(measured, "flux"),
}


if __name__ == "__main__":
    main()
