"""Calls of many steps: two with few steps are followed, and what they have in common is drawn out.

A pipeline's own loop is Python: a million steps would take an hour to follow, and each is like the one before. What a
count of steps changes is linear in it: iterations (Heun's scheduler makes two calls a step but for the last), and what
the pipeline holds of all steps.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vramtune.contract import Pipeline
from vramtune.contract.tracing import call_parameters
from vramtune.errors import UsageError
from vramtune.schema import LEAST_REPEATS, GrowingWork, Trace, TracedCall, TracedRun, Work, find_loops

STEPS = "num_inference_steps"
FOLLOWED = (20, 40)
"""Steps of the calls that are followed in place of one of more than `MANY`."""
MANY = 100
MOST = 10**6


def steps_to_follow(pipe: Pipeline, call_kwargs: Mapping[str, object]) -> tuple[int, ...]:
    """The counts of steps to follow instead of the one that is asked for; none where that is not many.

    Raises a `UsageError` for more than anybody waits for, and for those that the pipeline's scheduler refuses.
    """
    number = asked(call_kwargs)
    if number is None or number <= MANY:
        return ()
    if number > MOST:
        raise UsageError(f"{STEPS}={number} is too many: at most {MOST} can be planned for.")
    scheduler = getattr(pipe, "scheduler", None)
    if _refusal(scheduler, FOLLOWED[0]) is None and (refusal := _refusal(scheduler, number)):
        raise UsageError(f"{type(scheduler).__name__} refuses {STEPS}={number}. {refusal}")
    return FOLLOWED


def asked(call_kwargs: Mapping[str, object]) -> int | None:
    """The steps that a call asks for; None where it does not say, or says something else than a number."""
    number = call_kwargs.get(STEPS)
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def asked_or_default(pipe: Pipeline, method: str, call_kwargs: Mapping[str, object]) -> int | None:
    """The steps of a call: those that it asks for, else the method's own number of them; None where that is not one."""
    if STEPS in call_kwargs:
        return asked(call_kwargs)
    parameter = call_parameters(pipe, method).get(STEPS)
    return None if parameter is None else asked({STEPS: parameter.default})


def are_alike(few: TracedRun, more: TracedRun, calls: Sequence[TracedCall]) -> bool:
    """Whether two runs differ in nothing but how often their loops go round, so that others can be drawn out from them."""

    def loops(run: TracedRun) -> list[tuple[int, list[TracedCall]]]:
        numbers = [turn.call for turn in run.turns]
        found = find_loops(numbers)
        return [
            (
                min(loop.num_iterations, LEAST_REPEATS),
                [calls[n] for n in numbers[loop.start : loop.start + loop.period]],
            )
            for loop in found
        ]

    return loops(few) == loops(more)


def with_exact_steps(trace: Trace) -> Trace:
    """Of a trace with a run of each number of steps the first alone, and for which of these numbers it stands.

    What grows with the steps (a list of timesteps that is computed) is told by one other run and tried on all.
    """
    first, *others = trace.runs
    growing = next((found for other in others if (found := _growing(trace.work, first, other)) is not None), ())
    runs = {run.num_steps: run for run in trace.runs if run.num_steps is not None}
    tried = replace(trace, runs=(replace(first, growing=growing),), exact_steps=tuple(sorted(runs)))
    exact = [number for number in tried.exact_steps if _is_same(tried, number, runs[number])]
    (run,) = tried.runs
    done = [run.lead_work, *(turn.work for turn in run.turns)]
    done += [each for call in trace.calls for s in call.segments for each in (s.layer_work, s.after_work)]
    num_done = 1 + max((max(work) for work in done if work), default=-1)  # others' came after that
    return replace(tried, exact_steps=tuple(exact), work=trace.work[:num_done])


def _growing(work: Sequence[Work], run: TracedRun, other: TracedRun) -> tuple[GrowingWork, ...] | None:
    """What of a run's work, outside of its longest loop, grows with the steps to what it is in another run; None where
    they differ in something else."""
    assert run.num_steps is not None
    assert other.num_steps is not None
    more, loop = other.num_steps - run.num_steps, run.longest_loop
    longer = run.with_steps(other.num_steps)
    if longer.num_steps != other.num_steps or [t._replace(work=()) for t in longer.turns] != [
        t._replace(work=()) for t in other.turns
    ]:
        return None
    found = []
    for number, (mine, theirs) in enumerate(zip(longer.turns, other.turns, strict=True)):
        if len(mine.work) != len(theirs.work):
            return None
        turn = number if number < loop.stop else number - more * loop.period
        for position, (before, after) in enumerate(zip(mine.work, theirs.work, strict=True)):
            if before != after:
                num_bytes, num_elements = (
                    (getattr(work[after], name) - getattr(work[before], name)) / more
                    for name in ("num_bytes", "num_elements")
                )
                if loop.start <= number < loop.stop + more * loop.period or min(num_bytes, num_elements) < 0:
                    return None
                found.append(GrowingWork(turn, position, int(num_bytes), int(num_elements)))
    return tuple(found)


def _is_same(trace: Trace, num_steps: int, run: TracedRun) -> bool:
    """Whether the trace with so many steps is that run."""
    try:
        mine = trace.with_steps(num_steps)
    except ValueError:
        return False

    def written_out(work: Sequence[Work], run: TracedRun) -> object:
        turns = [(turn._replace(work=()), [work[number] for number in turn.work]) for turn in run.turns]
        return turns, [work[number] for number in run.lead_work]

    return written_out(mine.work, mine.runs[0]) == written_out(trace.work, run)


def _refusal(scheduler: object, num_steps: int) -> Exception | None:
    """What a copy of the scheduler says to so many steps."""
    try:
        copy.deepcopy(scheduler).set_timesteps(num_steps)  # type: ignore[attr-defined]
    except Exception as error:  # whatever it is, it is handed on
        return error
    return None
