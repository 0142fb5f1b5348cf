"""Errors that come at any line of vramtune's own offload code, as Ctrl-C and a full memory may."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import vramtune.offload

FOLDER = str(Path(vramtune.offload.__file__).parent)
OCCURRENCES = (1, 2, 5)
"""Which times that a line is run count as points, besides the last one."""


class Point(NamedTuple):
    """The n-th time that a line is run."""

    file: str
    line: int
    occurrence: int

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.line} ({self.occurrence})"


@contextmanager
def traced(on_line: Callable[[FrameType], None]) -> Iterator[None]:
    def begin(frame: FrameType, event: str, arg: Any) -> Any:
        return within if frame.f_code.co_filename.startswith(FOLDER) else None

    def within(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            on_line(frame)
        return within

    before = sys.gettrace()
    sys.settrace(begin)
    try:
        yield
    finally:
        sys.settrace(before)


def points_of(action: Callable[[], object]) -> list[Point]:
    """Every line that an action runs: the first times and the last."""
    counts: Counter[tuple[str, int]] = Counter()

    def count(frame: FrameType) -> None:
        counts[frame.f_code.co_filename, frame.f_lineno] += 1

    with traced(count):
        action()
    return [
        Point(*line, occurrence)
        for line, number in counts.items()
        for occurrence in sorted({*(n for n in OCCURRENCES if n <= number), number})
    ]


def interrupt(action: Callable[[], object], point: Point, error: BaseException) -> bool:
    """Run an action that gets this error at that point; whether it came there."""
    left, came = point.occurrence, False

    def maybe_raise(frame: FrameType) -> None:
        nonlocal left, came
        if (frame.f_code.co_filename, frame.f_lineno) == (point.file, point.line):
            left -= 1
            if left == 0:
                came = True
                raise error

    with suppress(type(error)), traced(maybe_raise):
        action()
    error.__traceback__ = error.__context__ = None  # whose frames hold tensors
    return came
