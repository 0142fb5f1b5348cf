"""Calls of many steps: two with few steps are followed, and what they have in common is drawn out.

A pipeline's own loop is Python: a million steps would take an hour to follow, and each is like the one before. What a
count of steps changes is linear in it: iterations (Heun's scheduler makes two calls a step but for the last), and what
the pipeline holds of all steps.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vramtune.contract import Pipeline
from vramtune.errors import UsageError
from vramtune.schema import Stage

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


def drawn_out(calls: Sequence[Sequence[Stage]], num_steps: int) -> tuple[Stage, ...] | None:
    """The stages of a call of so many steps, from those of the two that were followed; None where these differ."""
    few, more = calls
    if [(stage.name, stage.activities) for stage in few] != [(stage.name, stage.activities) for stage in more]:
        return None
    first, second = FOLLOWED

    def at(low: int, high: int) -> int:
        return high + max(round((num_steps - second) * (high - low) / (second - first)), 0)

    return tuple(
        replace(
            after,
            num_iterations=at(before.num_iterations, after.num_iterations),
            pipeline_bytes=at(before.pipeline_bytes, after.pipeline_bytes),
        )
        for before, after in zip(few, more, strict=True)
    )


def _refusal(scheduler: object, num_steps: int) -> Exception | None:
    """What a copy of the scheduler says to so many steps."""
    try:
        copy.deepcopy(scheduler).set_timesteps(num_steps)  # type: ignore[attr-defined]
    except Exception as error:  # whatever it is, it is handed on
        return error
    return None
