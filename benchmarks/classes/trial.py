"""One case from beginning to end; each phase is written down as it ends."""

import gc
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.classes.cases import Case, Dummies
from benchmarks.classes.checks import Wrong, check_predicted, check_streamed, check_tuned, untuned
from benchmarks.classes.offload_tests import (
    OTHER_CALLS,
    DoesNotApply,
    check_beside_stock_offload,
    check_if_stock_offload_runs,
    check_other_call,
    check_theirs,
    names_of_theirs,
)
from benchmarks.classes.outputs import differences, flat, says_much, seed_everything
from benchmarks.classes.reason import one_line, reason
from vramtune import Plan

THEIRS = "diffusers: "
OTHER = "other call: "


class Trial:
    """The phases of one case, and the file in which their results are."""

    def __init__(self, case: Case, file: Path, patience_seconds: float) -> None:
        self.case, self.file, self.patience_seconds = case, file, patience_seconds
        self.results: dict[str, Any] = {"case": asdict(case), "phases": {}, "is_done": False}

    def run(self) -> None:
        """All phases that make sense."""
        dummies = self.phase("builds", lambda: build(self.case))
        if dummies is not None:
            self.examine(dummies)
        self.results["is_done"] = True
        self.write()

    def examine(self, dummies: Dummies) -> None:
        expected = self.phase("runs untuned", lambda: untuned(dummies))
        if expected is None:
            self.phase("runs on the CPU", lambda: on_cpu(dummies))
        costs = self.phase("predicted", lambda: check_predicted(dummies, expected))
        if expected is None:
            return
        self.results["says_much"] = says_much(expected.first)
        plan = None if costs is None else self.phase("tuned", lambda: check_tuned(dummies, expected, costs))
        if plan is not None:
            streamed = partial(check_streamed, dummies, expected, plan)
            self.phase("streamed", lambda: check_if_stock_offload_runs(dummies, streamed))
        if self.failed("predicted", "tuned", "streamed"):
            self.phase("repeats itself untuned", lambda: check_repeats(dummies, expected))
        if plan is None or not self.results["phases"]["streamed"]["ok"]:
            return
        self.phase("beside stock offload", lambda: check_beside_stock_offload(dummies, expected, plan))
        for name in names_of_theirs(dummies):
            self.phase(THEIRS + name.rpartition("::")[2], lambda name=name: check_theirs(dummies, name, plan))
        self.other_calls(dummies, plan)

    def other_calls(self, dummies: Dummies, plan: Plan) -> None:
        """In an order of the case's own: patience may end before they do."""
        names = list(OTHER_CALLS)
        random.Random(self.case.name).shuffle(names)
        started = time.process_time()
        for name in names:
            if time.process_time() - started > self.patience_seconds:
                break
            self.phase(OTHER + name, lambda make=OTHER_CALLS[name]: check_other_call(dummies, make, plan))

    def failed(self, *names: str) -> bool:
        return any(self.results["phases"].get(name, {}).get("ok") is False for name in names)

    def phase(self, name: str, run: Callable[[], Any]) -> Any:
        """What the phase returns, or None where it fails; what it found is written down, with its processor time."""
        self.results["running"] = name
        self.write()
        started, value = time.process_time(), None
        try:
            value = run()
            found: dict[str, Any] = {"ok": True, "text": ""}
        except DoesNotApply as error:
            found = {"ok": None, "text": str(error)}
        except Wrong as error:
            found = {"ok": False, "text": str(error)}
        except BaseException as error:  # whatever a test or a pipeline throws is this phase's result
            found = {"ok": False, "text": reason(error)}
        self.results["phases"][name] = found | {"seconds": round(time.process_time() - started, 2)}
        del self.results["running"]
        self.write()
        gc.collect()
        return value

    def write(self) -> None:
        self.file.write_text(json.dumps(self.results, indent=1))


def build(case: Case) -> Dummies:
    """The dummies, once they have built a pipeline."""
    dummies = Dummies(case)
    dummies.pipe()
    return dummies


def on_cpu(dummies: Dummies) -> None:
    """What fails on the CPU as well is not the simulated GPU's fault."""
    pipe = dummies.pipe()
    dummies.prepare(pipe)
    seed_everything()
    flat(pipe(**dummies.inputs()))


def check_repeats(dummies: Dummies, expected: Any) -> None:
    """Another untuned pipeline gives the same: a difference is not the pipeline's own."""
    if texts := differences(untuned(dummies).first, expected.first):
        raise Wrong(one_line(f"untuned, it does not repeat itself: {texts[0]}"))


def note_death(file: Path, case: Case, how: str) -> None:
    """Write down that a trial's process ended before its trial did."""
    results = json.loads(file.read_text()) if file.exists() else {"case": asdict(case), "phases": {}}
    name = results.pop("running", "the process")
    results["phases"][name] = {"ok": False, "text": how, "seconds": 0.0}
    file.write_text(json.dumps(results | {"is_done": True}, indent=1))
