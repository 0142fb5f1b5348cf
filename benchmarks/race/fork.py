"""Each run in a process of its own, forked from one that has imported, or built, all that takes long."""

import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from benchmarks.race.calls import LONGEST_REASON, Task

PATIENCE_SECONDS = 400


def forked(
    run: Callable[[Task], dict[str, Any]], task: Task, *, patience_seconds: float = PATIENCE_SECONDS
) -> dict[str, Any]:
    """What one run has found; why not, where it raised or its process did not end by itself."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer_and_end(run, task, writing)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        is_late = not select.select([pipe], [], [], patience_seconds)[0]
        if is_late:
            os.kill(pid, signal.SIGKILL)
        answer = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == 0 and answer:
        return dict(json.loads(answer))
    if is_late:
        return {"failed": f"no end within {patience_seconds:g} s of real time"}
    if status < 0:
        return {"failed": f"its process died of {signal.Signals(-status).name}"}
    return {"failed": f"its process ended with {status} and no answer"}


def answer_and_end(run: Callable[[Task], dict[str, Any]], task: Task, writing: int) -> NoReturn:
    """Write what was found, or raised, to a pipe, and end the process."""
    status = 1
    try:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # rivals print
        os.write(writing, found_or_raised(run, task).encode())
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)  # rivals' threads and exit handlers may wait for ever


def found_or_raised(run: Callable[[Task], dict[str, Any]], task: Task) -> str:
    """As JSON."""
    try:
        return json.dumps(run(task))
    except BaseException as error:
        traceback.print_exc()
        return json.dumps({"failed": f"{type(error).__name__}: {error}"[:LONGEST_REASON]})
