"""Who holds GPU memory, in the order in which every plot stacks it."""

from dataclasses import dataclass

from vramtune.schema import MemoryLevel, Timeline
from vramtune.units import GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A component, which holds its weights, or one of the owners below, which are equal to no component."""

    name: str
    is_component: bool = False


CONTEXT = Owner(name="CUDA context")
WORKSPACES = Owner(name="library workspaces")
SLOTS = Owner(name="streaming slots")
PIPELINE = Owner(name="pipeline tensors")
"""What the pipeline itself holds: latents, embeddings."""
ACTIVATIONS = Owner(name="activations")
CACHED = Owner(name="cached by PyTorch")
"""What its allocator takes beyond the need, since there is room for it."""
OTHER = Owner(name="other")
"""Several owners that hold too little to be told apart."""


def held_by_owner(level: MemoryLevel, timeline: Timeline) -> dict[Owner, int]:
    """Bytes by owner at one level of a timeline: what never changes, then weights, then what comes and goes."""
    weights = {Owner(name=name, is_component=True): level.component_bytes.get(name, 0) for name in timeline.components}
    return {
        CONTEXT: level.context_bytes,
        WORKSPACES: level.workspace_bytes,
        **weights,
        SLOTS: level.slot_bytes,
        PIPELINE: level.pipeline_bytes,
        ACTIVATIONS: level.activation_bytes,
        CACHED: level.cached_bytes,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What one owner holds, in GiB, at each of a row of levels."""

    owner: Owner
    gib: tuple[float, ...]


def holdings(held: dict[Owner, list[int]]) -> tuple[Holding, ...]:
    """Bytes by owner and level, in GiB."""
    return tuple(Holding(owner=owner, gib=tuple(num_bytes / GIB for num_bytes in row)) for owner, row in held.items())
