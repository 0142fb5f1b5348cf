"""The budget as it is asked for, held to and planned for, and the error where no plan fits it."""

from dataclasses import dataclass, replace
from math import ceil
from typing import Self

from vramtune.errors import BudgetError
from vramtune.schema import Device, Plan, Profile
from vramtune.tuner.local_search import Candidate
from vramtune.tuner.problem import Problem, pose
from vramtune.units import format_bytes

MARGIN_FRACTION = 0.005
"""Share of the budget left free by what places weights at once: peaks on the simulated GPU are predicted within 0.3%."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a plan may hold on the device."""

    asked_bytes: int
    """As the user gave it."""
    limit_bytes: int
    """What the peak is held to: what was asked, or what is usable on the device if that is less."""
    ram_bytes: int | None = None
    """What weights may take of the host: what was asked, or what there is if that is less. None: no limit is known."""
    lockable_bytes: int | None = None
    """How much of that may be page-locked."""
    margin_fraction: float = 0.0
    """Share of the limit that stays free for what the prediction may miss."""

    @classmethod
    def on(
        cls,
        device: Device,
        asked_bytes: int,
        *,
        ram_bytes: int | None = None,
        lock_bytes: int | None = None,
        margin_fraction: float = 0.0,
    ) -> Self:
        """The budget that is asked for on a device, with the host's memory that is asked for beside it."""
        ram_bytes = min((n for n in (ram_bytes, device.ram_bytes) if n is not None), default=None)
        lockable = (n for n in (ram_bytes, lock_bytes, device.lockable_bytes) if n is not None)
        return cls(
            asked_bytes=asked_bytes,
            limit_bytes=min(asked_bytes, device.usable_bytes),
            ram_bytes=ram_bytes,
            lockable_bytes=min(lockable, default=None),
            margin_fraction=margin_fraction,
        )

    @classmethod
    def of(cls, plan: Plan, *, margin_fraction: float = 0.0) -> Self:
        """The budget of a plan that is there."""
        return cls(
            asked_bytes=plan.asked_bytes,
            limit_bytes=plan.budget_bytes,
            ram_bytes=plan.ram_bytes,
            lockable_bytes=plan.lockable_bytes,
            margin_fraction=margin_fraction,
        )

    def applied_to(self, problem: Problem) -> Problem:
        """The problem with this budget's limits of the host's memory."""
        finer = None if problem.finer is None else self.applied_to(problem.finer)
        return replace(problem, ram_bytes=self.ram_bytes, lockable_bytes=self.lockable_bytes, finer=finer)

    @property
    def target_bytes(self) -> int:
        """What is planned for: the limit less the margin."""
        return self._less_margin(self.limit_bytes)

    def limit_for(self, target_bytes: int) -> int:
        """The smallest limit with such a target."""
        limit = ceil(target_bytes / (1 - self.margin_fraction))
        return limit if self._less_margin(limit) >= target_bytes else limit + 1

    def _less_margin(self, limit_bytes: int) -> int:
        return int(limit_bytes * (1 - self.margin_fraction))


def nothing_fits(profile: Profile, budget: Budget, allow: tuple[str, ...]) -> BudgetError:
    """The error that says how little would do, which permission would lower it, or which exclusion is to blame."""
    ways = [(), *(v.permissions for v in profile.variants if len({*v.permissions} - {*allow}) <= 1)]
    least = {permissions: Candidate.least_of_any(pose(profile, permissions)) for permissions in ways}
    needed = {permissions: budget.limit_for(candidate.peak_bytes) for permissions, candidate in least.items()}
    allowed = min((way for way in ways if set(way) <= set(allow)), key=needed.__getitem__)
    lowest = min(ways, key=needed.__getitem__)
    permission = next(iter({*lowest} - {*allow}), None) if needed[lowest] < needed[allowed] else None
    advice = _advice(profile, needed[allowed])
    if permission is not None:
        advice += f", or allow {permission!r}, with which {format_bytes(needed[lowest])} would do"
    return BudgetError(
        f"{profile.pipeline_class} does not fit {_asked(profile, budget)}: {_tightest(budget, least[allowed])}. "
        f"{advice}{_without_exclusion(profile, budget, allowed)}.",
        budget_bytes=budget.asked_bytes,
        smallest_bytes=needed[allowed],
        permission=permission,
        permitted_bytes=needed[lowest] if permission else None,
    )


def too_little_ram(profile: Profile, budget: Budget, least_bytes: int) -> BudgetError:
    """The error for a host that cannot hold what the GPU has no room for: how little would do."""
    assert budget.ram_bytes is not None
    has, needed = format_bytes(budget.ram_bytes), format_bytes(least_bytes)
    return BudgetError(
        f"{profile.pipeline_class} does not fit {has} of host memory beside {format_bytes(budget.asked_bytes)} on the GPU: "
        f"its weights take {needed} of the host at least. Give them that (`ram_gb`, `--ram-gb`; by default it is what is "
        "free), a larger `vram_gb`, or load the pipeline so that its weights stay in their files (`vramtune.load`), in a smaller "
        "dtype, or quantized.",
        budget_bytes=budget.ram_bytes,
        smallest_bytes=least_bytes,
        resource="ram",
    )


def _asked(profile: Profile, budget: Budget) -> str:
    usable_bytes, asked = profile.device.usable_bytes, format_bytes(budget.asked_bytes)
    if budget.asked_bytes <= usable_bytes:
        return asked
    return f"{asked} ({format_bytes(usable_bytes)} of it usable on {profile.device.name})"


def _tightest(budget: Budget, candidate: Candidate) -> str:
    """The stage that needs most, and how much of that is not weights."""
    problem = candidate.problem
    stage = max(problem.stages, key=lambda stage: candidate.stage_bytes(problem.stages.index(stage)))
    others = format_bytes(stage.overhead_bytes - problem.unused_bytes)
    needed = format_bytes(budget.limit_for(candidate.peak_bytes))
    return f"stage {stage.name!r} alone needs {needed}, {others} of it besides weights"


def _advice(profile: Profile, smallest_bytes: int) -> str:
    larger = ", which takes a larger GPU" if smallest_bytes > profile.device.usable_bytes else ""
    return f"Give it at least {format_bytes(smallest_bytes)}{larger}"


def _without_exclusion(profile: Profile, budget: Budget, permissions: tuple[str, ...]) -> str:
    """One more sentence where the budget would do if nothing were excluded from offload."""
    excluded = [repr(c.name) for c in profile.components if c.name in profile.excluded]
    candidate = Candidate.least_of_any(pose(replace(profile, excluded=()), permissions))
    enough = budget.limit_for(candidate.peak_bytes)
    if not excluded or enough > budget.limit_bytes:
        return ""
    return (
        f". {' and '.join(excluded)} {'is' if len(excluded) == 1 else 'are'} excluded from offload (the pipeline's "
        f"`_exclude_from_cpu_offload`); without that {format_bytes(enough)} would do"
    )
