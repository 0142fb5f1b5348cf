"""Starts runs: on the null card, with the rivals on the path, and with the card that a run is to have."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from subprocess import PIPE
from typing import Any, Self

from benchmarks.race.rows import CONTEXT_BYTES, LINKS, ROWS, Key, Row, pageable_bytes_per_second

ROOT = Path(__file__).parents[2]
LOG = ROWS.with_name("log.txt")
"""What contestants print, and the traces of their errors."""
RIVALS = ROOT / ".venv-race"
"""Where `make race` unpacks them."""


def settings(key: Key, cap_bytes: int) -> dict[str, str]:
    """The card of one run."""
    return {
        "NULLCUDA_TOTAL_BYTES": str(cap_bytes),
        "NULLCUDA_CONTEXT_BYTES": str(CONTEXT_BYTES),
        "NULLCUDA_WORKSPACE": "images",
        "NULLCUDA_COPY_LIMIT_BYTES": "1e6",
        "NULLCUDA_COPY_BYTES_PER_SECOND": str(LINKS[key.link]),
        "NULLCUDA_PAGEABLE_COPY_BYTES_PER_SECOND": str(pageable_bytes_per_second(key.link)),
    }


class Stable:
    """A process that has everything imported and forks one for each run (`stable.py`); one for each thread of ours."""

    def __init__(self) -> None:
        self.threads = threading.local()
        self.processes: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.stdin.close()  # which ends it
            process.stdout.close()
            process.wait()

    def run(self, key: Key, cap_bytes: int, activation_bytes: int) -> Row:
        """One run."""
        task = {
            "pipeline": key.pipeline,
            "contestant": key.contestant,
            "knob": key.knob,
            "activation_bytes": activation_bytes,
            "settings": settings(key, cap_bytes),
        }
        process = self._process()
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            sys.exit(f"the process that starts the runs has ended; its last words are in {LOG}")
        return Row(key=key, cap_bytes=cap_bytes, found=json.loads(answer))

    def _process(self) -> Any:
        if not hasattr(self.threads, "process"):
            LOG.parent.mkdir(parents=True, exist_ok=True)
            environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{ROOT}:{RIVALS}"}
            command = [sys.executable, "-m", "tests.nullcuda", sys.executable, "-m", "benchmarks.race.stable"]
            with LOG.open("a") as log:
                self.threads.process = subprocess.Popen(
                    command, env=environment, cwd=ROOT, text=True, stdin=PIPE, stdout=PIPE, stderr=log
                )
            self.processes.append(self.threads.process)
        return self.threads.process
