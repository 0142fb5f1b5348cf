"""The public functions, by what one has: a pipeline, a profile, or neither yet.

Importing them imports neither torch nor diffusers.
"""

from vramtune.api.choosing import explore, price, sweep, which
from vramtune.api.pipelines import autotune, install, load, profile, trace
from vramtune.api.profiles import compare, frontier, plan, report, timeline
from vramtune.log import show_lines

__all__ = [
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

show_lines()
