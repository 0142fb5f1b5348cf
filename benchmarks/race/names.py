"""What the race is between: the names of pipelines and contestants, without what makes them."""

from dataclasses import dataclass

PIPELINES = {
    "flux-awkward": "like FLUX.1, 512 x 512, with groups just above multiples of 2 MiB",
    "flux-nf4": "like FLUX.1, 512 x 512, transformer and T5 in bitsandbytes' nf4",
    "sdxl": "like SDXL, 1024 x 1024",
    "wan": "like Wan 2.1 14B, 33 frames of 416 x 240",
}

LESS_LOCKED = "2/3 locked"
"""A setting of vramtune: `lock_gb` of so much of the pipeline's weights."""
LOCKED_SHARE = 2 / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One that takes part."""

    title: str
    package: str
    """Whose version is written down."""
    knobs: tuple[str, ...] = ("",)
    """The settings that are tried, a process each; the fastest that runs counts."""
    num_warm_calls: int = 1
    """Calls after which it is as fast as it gets."""
    is_pipeline: bool = False
    """Whether what it makes is called in the pipeline's place."""


CONTESTANTS = {
    "vramtune": Contestant(title="vramtune", package="vramtune", knobs=("", LESS_LOCKED)),
    "resident": Contestant(title="all resident", package="diffusers"),
    "model": Contestant(title="diffusers: model offload", package="diffusers"),
    "sequential": Contestant(title="diffusers: sequential offload", package="diffusers"),
    "group-block": Contestant(title="diffusers: group, block, stream", package="diffusers", knobs=("1",)),
    "group-block-recorded": Contestant(
        title="diffusers: group, block, stream, recorded", package="diffusers", knobs=("1",)
    ),
    "group-leaf": Contestant(title="diffusers: group, leaf, stream", package="diffusers"),
    "group-leaf-recorded": Contestant(title="diffusers: group, leaf, stream, recorded", package="diffusers"),
    "diffusers-mm": Contestant(title="diffusers-mm", package="diffusers-mm", knobs=("1.0", "as it comes", "1.5")),
    "mmgp": Contestant(title="mmgp", package="mmgp", knobs=("2 x 1.5", "2 x 1", "1")),
    "flextensor": Contestant(
        title="FlexTensor", package="flextensor", knobs=("1", "1, getter", "0.9"), num_warm_calls=2
    ),
    "dynamic-offloader": Contestant(
        title="diffusers-dynamic-offloader",
        package="diffusers-dynamic-offloader",
        knobs=("warm_process", "as it comes"),
        num_warm_calls=2,
    ),
    "aircanvas": Contestant(title="AirCanvas", package="aircanvas", is_pipeline=True),
}
"""By the name that the command line takes."""
