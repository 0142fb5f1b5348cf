"""Finds words on a drawn figure that are cut off or lie on one another."""

import itertools
from unittest.mock import patch

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.text import Text

TOUCH = 1.0
"""Pixels by which boxes of words may overlap: a box is a little larger than the ink in it."""


def faults(axes: Axes) -> list[str]:
    """Faults of the figure that `axes` are on, in words."""
    figure = axes.figure
    renderer = RendererAgg(figure.bbox.width, figure.bbox.height, figure.dpi)
    with patch.object(Text, "draw", autospec=True, side_effect=Text.draw) as draw:
        figure.draw(renderer)
    drawn = dict.fromkeys(call.args[0] for call in draw.call_args_list)  # labels of far ticks are not
    boxes = [(text.get_text(), _corners(text, renderer)) for text in drawn if text.get_visible() and text.get_text()]
    size = np.array([figure.bbox.width, figure.bbox.height])
    cut = [
        f"cut off: {words!r}" for words, corners in boxes if (corners < -TOUCH).any() or (corners > size + TOUCH).any()
    ]
    over = [
        f"{first!r} lies on {second!r}"
        for (first, a), (second, b) in itertools.combinations(boxes, 2)
        if _overlap(a, b) and _overlap(b, a)
    ]
    return cut + over


def _corners(text: Text, renderer: RendererAgg) -> np.ndarray:
    """The four corners of the words' box, slanted as they are."""
    angle = text.get_rotation()
    if angle % 90 == 0:
        box = Text.get_window_extent(text, renderer)
        return box.corners()[[0, 1, 3, 2]]
    text.set_rotation(0)
    level = Text.get_window_extent(text, renderer).corners()[[0, 1, 3, 2]]
    text.set_rotation(angle)
    anchor = text.get_transform().transform(text.get_position())
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return anchor + (level - anchor) @ np.array([[cos, sin], [-sin, cos]])


def _overlap(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the boxes overlap when projected on each of the edges of `a`: one gap is enough to be apart."""
    for edge in (a[1] - a[0], a[2] - a[1]):
        direction = edge / np.linalg.norm(edge)
        along_a, along_b = a @ direction, b @ direction
        if along_a.max() - TOUCH <= along_b.min() or along_b.max() - TOUCH <= along_a.min():
            return False
    return True
