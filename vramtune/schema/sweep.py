"""Many answers in one file: the nouns of a sweep."""

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from vramtune.schema.plan import Role, StageEstimate


@dataclass(frozen=True, slots=True, kw_only=True)
class SweptStage:
    """One stage of a row's plan, predicted."""

    name: str
    num_iterations: int
    seconds: float
    compute_seconds: float
    peak_bytes: int
    moved_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRow:
    """One call of a model on one GPU in one budget, predicted. What is None was not asked, or nothing fits."""

    model: str
    pipeline_class: str = ""
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    steps: int | None = None
    """None of these four is the model card's, or the pipeline's own."""
    quantization: str = ""
    """`transformer=nf4`, several separated by commas."""
    gpu: str = ""
    gpu_bytes: int | None = None
    """Its nominal memory."""
    asked_bytes: int | None = None
    """The budget."""
    limit_bytes: int | None = None
    """What is planned for: the budget, or what is usable on the GPU if that is less."""
    fits: bool | None = None
    is_narrow: bool | None = None
    role: Role | None = None
    """What is done with weights at the most: `resident`, `offloaded`, `streamed`."""
    permissions: str = ""
    """Those that the plan uses."""
    peak_bytes: int | None = None
    seconds: float | None = None
    low_seconds: float | None = None
    high_seconds: float | None = None
    bound_seconds: float | None = None
    moved_bytes: int | None = None
    least_bytes: int | None = None
    """The smallest budget for which there is a plan on this GPU."""
    stages: str = ""
    """The plan's stages in order, as JSON: a list of objects with the fields of `SweptStage`."""
    error: str = ""
    """Why the call could not be followed: then nothing else is known."""

    def check(self) -> None:
        """Raise a `ValueError` where figures that belong together are missing."""
        if self.error:
            return
        if not self.gpu or self.asked_bytes is None or self.limit_bytes is None or self.fits is None:
            raise ValueError(f"a row of {self.model!r} without its GPU, budget or verdict")
        if self.fits and (self.seconds is None or self.peak_bytes is None or not self.swept_stages):
            raise ValueError(f"a plan of {self.model!r} on {self.gpu!r} without its seconds, peak or stages")

    @property
    def swept_stages(self) -> tuple[SweptStage, ...]:
        """The stages, read; a `ValueError` where they are none."""
        return msgspec.json.decode(self.stages, type=tuple[SweptStage, ...]) if self.stages else ()


def stages_text(stages: Iterable[StageEstimate]) -> str:
    """Stages as a row's text."""
    return msgspec.json.encode(
        [
            SweptStage(
                name=stage.name,
                num_iterations=stage.num_iterations,
                seconds=stage.seconds,
                compute_seconds=stage.compute_seconds,
                peak_bytes=stage.peak_bytes,
                moved_bytes=stage.moved_bytes,
            )
            for stage in stages
        ]
    ).decode()
