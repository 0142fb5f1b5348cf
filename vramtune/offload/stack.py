"""What is running, by the stack: a count of calls could be left wrong by an interrupt, the stack cannot."""

import sys
from types import CodeType, FrameType


def is_running(code: CodeType, **own: object) -> bool:
    """Whether, under the caller, this thread runs that code with these local variables."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code is code:
            known = frame.f_locals
            if all(known.get(name) is value for name, value in own.items()):
                return True
        frame = frame.f_back
    return False
