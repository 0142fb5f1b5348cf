"""Every noun, frozen, and how it is written to JSON and read back.

The data flows one way: a pipeline becomes a `Profile` (what each component costs), a profile and a budget become a
`Plan` (how many weight groups are on the GPU in each stage), a profile and a plan become a `Timeline`, and a tuned
pipeline's call becomes a `Measurement`. Bytes are ints, seconds are floats, counts start with `num_`, unknown is None.
Nothing here, and nothing that imports only this, needs torch.
"""

from vramtune.schema.comparison import PLAN_MODE, Comparison, Frontier, FrontierPoint, ModeEstimate
from vramtune.schema.files import SCHEMA_VERSION, checked_path, from_json, read_file, to_json, write_file
from vramtune.schema.machine import Accelerator, Device, Driver, Holder, Host, Kernels, Machine, Package, Source
from vramtune.schema.measurement import MeasuredStage, Measurement
from vramtune.schema.plan import (
    PERMISSIONS,
    Estimate,
    Permission,
    Placement,
    Plan,
    PlannedStage,
    Reason,
    ReasonKind,
    Role,
    StageEstimate,
    placement_name,
)
from vramtune.schema.profile import (
    Activity,
    Component,
    Layer,
    Profile,
    Scalar,
    Segment,
    Stage,
    Variant,
    WeightGroup,
    Weights,
    Workload,
    call_name,
)
from vramtune.schema.timeline import Engine, MemoryLevel, Span, Timeline

__all__ = [
    "PERMISSIONS",
    "PLAN_MODE",
    "SCHEMA_VERSION",
    "Accelerator",
    "Activity",
    "Comparison",
    "Component",
    "Device",
    "Driver",
    "Engine",
    "Estimate",
    "Frontier",
    "FrontierPoint",
    "Holder",
    "Host",
    "Kernels",
    "Layer",
    "Machine",
    "MeasuredStage",
    "Measurement",
    "MemoryLevel",
    "ModeEstimate",
    "Package",
    "Permission",
    "Placement",
    "Plan",
    "PlannedStage",
    "Profile",
    "Reason",
    "ReasonKind",
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
    "checked_path",
    "from_json",
    "placement_name",
    "read_file",
    "to_json",
    "write_file",
]
