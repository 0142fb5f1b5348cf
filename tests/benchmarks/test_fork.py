"""A run of the race in a process of its own: what it found, or how it really ended."""

import faulthandler
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.race.fork import forked

# what is forked here calls nothing of the threads that others left
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def finds(task: dict[str, Any]) -> dict[str, Any]:
    print("what a rival prints is not the answer")
    return {"seconds": 1.5, "pid": os.getpid(), **task}


def raises(_: object) -> dict[str, Any]:
    raise RuntimeError("no such setting" + "!" * 1000)


def dies_of(number: signal.Signals) -> Callable[[object], dict[str, Any]]:
    def run(_: object) -> dict[str, Any]:
        faulthandler.disable()  # or it prints the stack of this death, which is meant
        os.kill(os.getpid(), number)
        time.sleep(60)
        return {}

    return run


def test_what_a_run_finds_comes_back_from_another_process() -> None:
    found = forked(finds, {"knob": "1"})
    assert (found["seconds"], found["knob"]) == (1.5, "1")
    assert found["pid"] != os.getpid()


def test_what_it_raises_is_named() -> None:
    failed = forked(raises, {})["failed"]
    assert failed.startswith("RuntimeError: no such setting!!!")
    assert len(failed) == 200


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_process_that_dies_of_a_signal_is_said_to(number: signal.Signals) -> None:
    assert forked(dies_of(number), {}) == {"failed": f"its process died of {number.name}"}


@pytest.mark.parametrize("status", [0, 3])
def test_a_process_that_a_library_ends_has_no_answer(status: int) -> None:
    assert forked(lambda _: os._exit(status), {}) == {"failed": f"its process ended with {status} and no answer"}


def test_what_is_not_an_answer_in_json_is_an_error() -> None:
    assert "not JSON serializable" in forked(lambda _: {"pipe": object()}, {})["failed"]


def test_one_that_does_not_end_is_ended() -> None:
    found = forked(lambda _: time.sleep(60) or {}, {}, patience_seconds=0.2)
    assert found == {"failed": "no end within 0.2 s of real time"}
