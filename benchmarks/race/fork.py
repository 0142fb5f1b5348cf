"""Each run in a process of its own, forked from one that has imported, or built, all that takes long."""

import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from benchmarks.race.calls import Task

PATIENCE_SECONDS = 400


def forked(
    run: Callable[[Task], dict[str, Any]], task: Task, *, patience_seconds: float = PATIENCE_SECONDS
) -> dict[str, Any]:
    """What one run has found; why not, where it ended otherwise."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer_and_end(run, task, writing)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        if not select.select([pipe], [], [], patience_seconds)[0]:
            os.kill(pid, signal.SIGKILL)
        answer = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if answer:
        return dict(json.loads(answer))
    no_end = f"no end within {patience_seconds:g} s of real time"
    return {"failed": no_end if status == -signal.SIGKILL else f"the process ended with {status}"}


def answer_and_end(run: Callable[[Task], dict[str, Any]], task: Task, writing: int) -> NoReturn:
    """Write what was found to a pipe, and end the process."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # rivals print
    try:
        os.write(writing, json.dumps(run(task)).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)  # rivals' threads and exit handlers may wait for ever
