"""Runs of the race, each in a process that is forked from this one, which has imported all that takes long.

Started on the null card by `python -m benchmarks.race`, with the rivals on its path: reads tasks from standard input, one
line of JSON each, and answers each with a line. The card is made in the fork, with that task's memory and link.
"""

import json
import os
import select
import signal
import sys
from typing import Any
from unittest import mock

import torch

with mock.patch.object(
    torch.cuda, "is_available", return_value=True
):  # diffusers asks, and no fork could use the answer
    from benchmarks.race.one import Task, run

PATIENCE_SECONDS = 400


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(forked(json.loads(line))), flush=True)


def forked(task: Task) -> dict[str, Any]:
    """What one run has found; why not, where it ended otherwise."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        run(task, writing)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        if not select.select([pipe], [], [], PATIENCE_SECONDS)[0]:
            os.kill(pid, signal.SIGKILL)
        answer = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if answer:
        return dict(json.loads(answer))
    no_end = f"no end within {PATIENCE_SECONDS} s of real time"
    return {"failed": no_end if status == -signal.SIGKILL else f"the process ended with {status}"}


if __name__ == "__main__":
    main()
