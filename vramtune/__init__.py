"""vramtune: any diffusers pipeline under a VRAM budget, as fast as the hardware allows.

Everything public is here and loads on first use: `import vramtune` imports neither torch nor diffusers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vramtune.api import (
        autotune,
        compare,
        explore,
        frontier,
        install,
        load,
        plan,
        price,
        profile,
        report,
        sweep,
        timeline,
        trace,
        which,
    )
    from vramtune.errors import (
        BudgetError,
        FileError,
        NoAcceleratorError,
        TraceError,
        UnknownNameError,
        UsageError,
        VramtuneError,
    )
    from vramtune.schema import Comparison, Device, Frontier, Measurement, Plan, Profile, Ranking, Timeline, Trace
    from vramtune.tuned import Tuned
    from vramtune.tuner.offload_strategy import OffloadStrategy

__version__ = "0.1.0"

_HOMES = {
    "vramtune.api": (
        "autotune",
        "compare",
        "explore",
        "frontier",
        "install",
        "load",
        "plan",
        "price",
        "profile",
        "report",
        "sweep",
        "timeline",
        "trace",
        "which",
    ),
    "vramtune.tuned": ("Tuned",),
    "vramtune.tuner.offload_strategy": ("OffloadStrategy",),
    "vramtune.schema": (
        "Comparison",
        "Device",
        "Frontier",
        "Measurement",
        "Plan",
        "Profile",
        "Ranking",
        "Timeline",
        "Trace",
    ),
    "vramtune.errors": (
        "VramtuneError",
        "UsageError",
        "UnknownNameError",
        "FileError",
        "BudgetError",
        "TraceError",
        "NoAcceleratorError",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BudgetError",
    "Comparison",
    "Device",
    "FileError",
    "Frontier",
    "Measurement",
    "NoAcceleratorError",
    "OffloadStrategy",
    "Plan",
    "Profile",
    "Ranking",
    "Timeline",
    "Trace",
    "TraceError",
    "Tuned",
    "UnknownNameError",
    "UsageError",
    "VramtuneError",
    "__version__",
    "autotune",
    "compare",
    "explore",
    "frontier",
    "install",
    "load",
    "plan",
    "price",
    "profile",
    "report",
    "sweep",
    "timeline",
    "trace",
    "which",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'vramtune' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
