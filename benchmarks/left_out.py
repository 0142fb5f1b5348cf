"""What was fitted to published calls, fitted again without each of their sources, and how far off it then is on that one."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from statistics import median

from scipy.optimize import least_squares

from vramtune.profiler.predict import FollowedCall
from vramtune.profiler.roofline import Work, host_seconds, work_seconds
from vramtune.profiler.stages import find_loops
from vramtune.profiler.tracker import Entry
from vramtune.schema import Device

HEADER = ["fitted", "rows", "sources", "median error, fitted", "left out", "factors without one source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Constants of some cards that published calls decided."""

    name: str
    cards: tuple[str, ...]
    kinds: tuple[str, ...]
    """Kinds of operations whose shares were fitted; `all` is one factor for all arithmetic."""


FITTED = (Fitted(name="A10G: what its power limit leaves", cards=("A10G",), kinds=("all",)),)

Part = tuple[int, Counter[Work]]
"""A component's call, or the pipeline's own work: how often, and of which operations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A published time, and what was done in it."""

    source: str
    seconds: float
    device: Device
    parts: tuple[Part, ...]

    def error(self, kinds: Sequence[str], factors: Sequence[float]) -> float:
        """Of the prediction, if the shares of these kinds were so many times what they are."""
        return log(_seconds(self.parts, scaled(self.device, kinds, factors)) / self.seconds)


def table_rows(cases_of: Callable[[Fitted], list[Case]]) -> list[list[str]]:
    """One row for each thing that was fitted."""
    found = []
    for fitted in FITTED:
        cases = cases_of(fitted)
        sources = sorted({case.source for case in cases})
        if len(sources) < 2:
            continue
        without = {s: refit([case for case in cases if case.source != s], fitted.kinds) for s in sources}
        left_out = [abs(case.error(fitted.kinds, without[case.source])) for case in cases]
        here = [abs(case.error(fitted.kinds, [1.0] * len(fitted.kinds))) for case in cases]
        factors = ", ".join(
            f"{kind} {min(f):.2f} to {max(f):.2f}"
            for kind, f in zip(fitted.kinds, zip(*without.values(), strict=True), strict=True)
        )
        shares = f"{median(here):.0%}", f"{median(left_out):.0%}"
        found.append([fitted.name, str(len(cases)), str(len(sources)), *shares, factors])
    return found


def refit(cases: Sequence[Case], kinds: Sequence[str]) -> list[float]:
    """Factors of the present shares for which the squared errors (of logarithms) are least."""

    def residuals(logs: Iterable[float]) -> list[float]:
        factors = [exp(each) for each in logs]
        return [case.error(kinds, factors) for case in cases]

    # a soft loss: a row that waited for its host says nothing of the card
    found = least_squares(
        residuals, [0.0] * len(kinds), bounds=(log(0.25), log(4)), loss="soft_l1", f_scale=0.1, diff_step=0.01
    )
    return [exp(each) for each in found.x]


def scaled(device: Device, kinds: Sequence[str], factors: Sequence[float]) -> Device:
    """The device with other shares."""
    changes = dict(zip(kinds, factors, strict=True))
    if "all" in changes:
        rates = {dtype: changes["all"] * rate for dtype, rate in device.flops_per_second.items()}
        return replace(device, flops_per_second=rates)
    shares = {kind: changes.get(kind, 1.0) * share for kind, share in device.efficiency_fraction.items()}
    return replace(device, efficiency_fraction=shares)


def parts_of(call: FollowedCall, scope: str) -> tuple[Part, ...]:
    """What a call does, or one iteration of its longest loop where a row counts a `step`."""
    recording = call.recordings[0]
    traces = [each.trace for each in recording.calls]
    times = 1
    if scope in ("step", "denoise"):
        loop = max(find_loops(traces), key=lambda loop: loop.num_iterations)
        traces, times = traces[loop.start : loop.start + loop.period], 1 if scope == "step" else loop.num_iterations
    parts = [(times * count, _works(trace.tape)) for trace, count in Counter(traces).items()]
    return (*parts, (1, _works(recording.pipeline_tape))) if scope == "pipeline" else tuple(parts)


def _works(tape: Iterable[Entry]) -> Counter[Work]:
    return Counter(entry for entry in tape if isinstance(entry, Work))


def _seconds(parts: Iterable[Part], device: Device) -> float:
    total = 0.0
    for times, works in parts:
        gpu = sum(count * work_seconds(work, device) for work, count in works.items())
        host = sum(count * host_seconds(work, device) for work, count in works.items())
        total += times * max(gpu, host)
    return total
