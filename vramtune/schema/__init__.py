"""Every noun, frozen, and how it is written to JSON and read back.

The data flows one way: a pipeline becomes a `Profile` (what each component costs), a profile and a budget
become a `Plan` (how many weight groups are on the GPU in each stage), a profile and a plan become a
`Timeline`, and a tuned pipeline's call becomes a `Measurement`. Bytes are ints, seconds are floats, counts start with `num_`, unknown is None. Nothing here, and
nothing that imports only this, needs torch.
"""

from vramtune.schema.files import SCHEMA_VERSION, from_json, read_file, to_json, write_file
from vramtune.schema.frames import frame_of
from vramtune.schema.measurement import MeasuredStage, Measurement
from vramtune.schema.plan import (
    PLAN_MODE,
    Comparison,
    Engine,
    Estimate,
    Frontier,
    FrontierPoint,
    MemoryLevel,
    ModeEstimate,
    Placement,
    Plan,
    PlannedStage,
    Role,
    Span,
    StageEstimate,
    Timeline,
    placement_name,
)
from vramtune.schema.profile import (
    Activity,
    Component,
    Device,
    Layer,
    Profile,
    Scalar,
    Segment,
    Source,
    Stage,
    Variant,
    WeightGroup,
    Weights,
    Workload,
    call_name,
)

__all__ = [
    "PLAN_MODE",
    "SCHEMA_VERSION",
    "Activity",
    "Comparison",
    "Component",
    "Device",
    "Engine",
    "Estimate",
    "Frontier",
    "FrontierPoint",
    "Layer",
    "MeasuredStage",
    "Measurement",
    "MemoryLevel",
    "ModeEstimate",
    "Placement",
    "Plan",
    "PlannedStage",
    "Profile",
    "Role",
    "Scalar",
    "Segment",
    "Source",
    "Span",
    "Stage",
    "StageEstimate",
    "Timeline",
    "Variant",
    "WeightGroup",
    "Weights",
    "Workload",
    "call_name",
    "frame_of",
    "from_json",
    "placement_name",
    "read_file",
    "to_json",
    "write_file",
]
