"""Plots: for each, one function that computes what is drawn, and one that draws it.

Each drawing function takes an `ax`, makes a figure of its own without one, and returns the axes. The nouns' own
methods (`profile.plot()`, `timeline.plot_memory()`) call both; `save` writes the axes' figure to a file.
"""

from vramtune.reports.plots.components import ComponentsPlot, component_costs, draw_components
from vramtune.reports.plots.frontier import FrontierPlot, draw_frontier, latency_frontier
from vramtune.reports.plots.lanes import LanesPlot, draw_lanes, step_lanes
from vramtune.reports.plots.measured import MeasuredPlot, draw_measured, predicted_and_measured
from vramtune.reports.plots.memory import MemoryPlot, draw_memory, memory_over_call
from vramtune.reports.plots.modes import ModesPlot, draw_modes, mode_seconds
from vramtune.reports.plots.peaks import PeaksPlot, draw_peaks, stage_peaks
from vramtune.reports.plots.ranking import RankingPlot, draw_ranking, gpu_seconds
from vramtune.reports.plots.style import FORMATS, save

__all__ = [
    "FORMATS",
    "ComponentsPlot",
    "FrontierPlot",
    "LanesPlot",
    "MeasuredPlot",
    "MemoryPlot",
    "ModesPlot",
    "PeaksPlot",
    "RankingPlot",
    "component_costs",
    "draw_components",
    "draw_frontier",
    "draw_lanes",
    "draw_measured",
    "draw_memory",
    "draw_modes",
    "draw_peaks",
    "draw_ranking",
    "gpu_seconds",
    "latency_frontier",
    "memory_over_call",
    "mode_seconds",
    "predicted_and_measured",
    "save",
    "stage_peaks",
    "step_lanes",
]
