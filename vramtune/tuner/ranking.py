"""Which GPU: the fastest plan of a call on each, and in the least memory that works there."""

from collections.abc import Iterable, Mapping, Sequence

from vramtune.schema import FrontierPoint, Profile, RankedGpu, Ranking, Trace
from vramtune.tuner.budget import Budget, nothing_fits
from vramtune.tuner.local_search import Candidate
from vramtune.tuner.problem import Problem
from vramtune.tuner.search import choose, fastest, pose_permitted


def rank_gpus(
    trace: Trace,
    profiles: Iterable[Profile],
    *,
    asked_bytes: int | None = None,
    most_seconds: float | None = None,
    allow: tuple[str, ...] = (),
) -> Ranking:
    """The GPUs of a call's profiles, in order; a budget above what one has is all that it gives."""
    gpus = [ranked_gpu(profile, asked_bytes=asked_bytes, allow=allow) for profile in profiles]
    ranking = Ranking(
        pipeline_class=trace.pipeline_class,
        workload=trace.workload,
        asked_bytes=asked_bytes,
        most_seconds=most_seconds,
        gpus=(),
    )

    def order(gpu: RankedGpu) -> tuple[bool, bool, float]:
        return not ranking.is_in_time(gpu), not gpu.fits, gpu.least_bytes if gpu.seconds is None else gpu.seconds

    return Ranking(
        pipeline_class=trace.pipeline_class,
        workload=trace.workload,
        asked_bytes=asked_bytes,
        most_seconds=most_seconds,
        gpus=tuple(sorted(gpus, key=order)),
    )


def ranked_gpu(profile: Profile, *, asked_bytes: int | None, allow: tuple[str, ...] = ()) -> RankedGpu:
    """What a call's profile comes to on its device."""
    device = profile.device
    budget = Budget.on(device, device.usable_bytes if asked_bytes is None else min(asked_bytes, device.total_bytes))
    problems = pose_permitted(profile, allow)
    least_bytes = least_budget(problems.values())
    best = _fastest_in(problems, budget)
    return RankedGpu(
        device=device,
        budget_bytes=budget.limit_bytes,
        best=best,
        least=_fastest_in(problems, Budget.on(device, least_bytes)) if best is not None else None,
        least_bytes=least_bytes,
        permission=None if best is not None else nothing_fits(profile, budget, allow).permission,
    )


def fastest_in_each(
    profile: Profile, budgets: Sequence[int], allow: tuple[str, ...] = ()
) -> tuple[int, list[FrontierPoint | None]]:
    """The smallest budget that works, and the fastest plan in each of these, in bytes; None where nothing fits.

    A budget above what the device gives is all that it gives.
    """
    device, problems = profile.device, pose_permitted(profile, allow)
    found: dict[int, FrontierPoint | None] = {}
    for asked_bytes in budgets:
        budget = Budget.on(device, asked_bytes)
        if budget.limit_bytes not in found:
            found[budget.limit_bytes] = _fastest_in(problems, budget)
    return least_budget(problems.values()), [found[min(each, device.usable_bytes)] for each in budgets]


def least_budget(problems: Iterable[Problem]) -> int:
    """The smallest budget, without a margin, for which there is a plan."""
    return min(Candidate.least_of_any(problem).peak_bytes for problem in problems)


def _fastest_in(problems: Mapping[tuple[str, ...], Problem], budget: Budget) -> FrontierPoint | None:
    choice = fastest(choose(problems, budget))
    if choice is None:
        return None
    return FrontierPoint(budget_bytes=budget.limit_bytes, permissions=choice.permissions, estimate=choice.estimate)
