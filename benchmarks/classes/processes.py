"""One forked process a case, a few at a time: what crashes or hangs is one case's result."""

import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.classes.cases import Case

PAUSE_SECONDS = 0.05


@dataclass
class Child:
    """A process at work on a case."""

    case: Case
    process: int
    started: float = field(default_factory=time.monotonic)
    is_late: bool = False


def run_all(
    cases: Sequence[Case], run: Callable[[Case], None], *, num_jobs: int, limit_seconds: float
) -> Iterator[tuple[Case, str]]:
    """Each case as its process ends, and how it ended where that was not by itself."""
    waiting, children = deque(cases), dict[int, Child]()
    while waiting or children:
        while waiting and len(children) < num_jobs:
            child = start(waiting.popleft(), run)
            children[child.process] = child
        process, status = os.waitpid(-1, os.WNOHANG)
        if process in children:
            child = children.pop(process)
            yield child.case, ending(child, status, limit_seconds)
            continue
        for child in children.values():
            if time.monotonic() - child.started > limit_seconds and not child.is_late:
                child.is_late = True
                os.kill(child.process, signal.SIGKILL)
        time.sleep(PAUSE_SECONDS)


def start(case: Case, run: Callable[[Case], None]) -> Child:
    process = os.fork()
    if process == 0:
        status = 1
        try:
            run(case)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)  # nothing of the parent's is flushed or cleaned up twice
    return Child(case, process)


def ending(child: Child, status: int, limit_seconds: float) -> str:
    if child.is_late:
        return f"not done after {limit_seconds:.0f} s"
    if os.WIFSIGNALED(status):
        return f"its process died of {signal.Signals(os.WTERMSIG(status)).name}"
    return f"its process ended with {os.WEXITSTATUS(status)}" if status else ""
