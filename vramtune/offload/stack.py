"""What is running, by the stack: a count of calls could be left wrong by an interrupt, the stack cannot."""

import sys
from collections.abc import Iterator
from types import CodeType, FrameType

from vramtune.contract import CALL, Pipeline


def is_running(code: CodeType, **own: object) -> bool:
    """Whether, under the caller, this thread runs that code with these local variables."""
    for frame in _frames():
        if frame.f_code is code:
            known = frame.f_locals
            if all(known.get(name) is value for name, value in own.items()):
                return True
    return False


def is_pipeline_running() -> bool:
    """Whether this thread is in the call of a pipeline, under a plan or not."""
    return any(f.f_code.co_name == CALL and isinstance(f.f_locals.get("self"), Pipeline) for f in _frames())


def _frames() -> Iterator[FrameType]:
    """The frames above the caller of the function that asks, from the innermost."""
    frame: FrameType | None = sys._getframe(3)
    while frame is not None:
        yield frame
        frame = frame.f_back
