"""The budget as it is asked for, held to and planned for, and the error where no plan fits it."""

from dataclasses import dataclass, replace
from math import ceil
from typing import Self

from vramtune.errors import BudgetError
from vramtune.schema import Device, Profile
from vramtune.tuner.local_search import Candidate
from vramtune.tuner.problem import pose
from vramtune.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a plan may hold on the device."""

    asked_bytes: int
    """As the user gave it."""
    limit_bytes: int
    """What the peak is held to: what was asked, or what is usable on the device if that is less."""
    margin_fraction: float = 0.0
    """Share of the limit that stays free for what the prediction may miss."""

    @classmethod
    def on(cls, device: Device, asked_bytes: int, *, margin_fraction: float = 0.0) -> Self:
        """The budget that is asked for on a device."""
        limit_bytes = min(asked_bytes, device.usable_bytes)
        return cls(asked_bytes=asked_bytes, limit_bytes=limit_bytes, margin_fraction=margin_fraction)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """By how much a budget is too small, and what would help."""

    stage: str
    """The stage that needs most."""
    smallest_bytes: int
    """The smallest budget that would do."""
    other_bytes: int
    """What that stage needs besides weights."""
    permission: str | None
    """One with which less would do, or None."""
    permitted_bytes: int | None
    """The smallest budget that would do with it."""
    unexcluded_bytes: int
    """The smallest budget that would do if the pipeline excluded nothing from offload."""


def nothing_fits(profile: Profile, budget: Budget, allow: tuple[str, ...]) -> BudgetError:
    """The error that says how little would do, which permission would lower it, or which exclusion is to blame."""
    shortage = _shortage(profile, budget, allow)
    return BudgetError(
        _sentences(profile, budget, shortage),
        budget_bytes=budget.asked_bytes,
        smallest_bytes=shortage.smallest_bytes,
        permission=shortage.permission,
        permitted_bytes=shortage.permitted_bytes,
    )


def _shortage(profile: Profile, budget: Budget, allow: tuple[str, ...]) -> Shortage:
    ways = ((), *((variant.permission,) for variant in profile.variants))
    least = {permissions: Candidate.least(pose(profile, permissions)) for permissions in ways}
    needed = {permissions: budget.limit_for(candidate.peak_bytes) for permissions, candidate in least.items()}
    allowed = min(
        (permissions for permissions in ways if set(permissions) <= set(allow)), key=needed.__getitem__
    )
    lowest = min(ways, key=needed.__getitem__)
    permission = lowest[0] if needed[lowest] < needed[allowed] else None
    candidate = least[allowed]
    problem = candidate.problem
    tightest = max(range(len(problem.stages)), key=candidate.stage_bytes)
    unexcluded = Candidate.least(pose(replace(profile, excluded=()), allowed))
    return Shortage(
        stage=problem.stages[tightest].name,
        smallest_bytes=needed[allowed],
        other_bytes=problem.stages[tightest].overhead_bytes - problem.unused_bytes,
        permission=permission,
        permitted_bytes=needed[lowest] if permission else None,
        unexcluded_bytes=budget.limit_for(unexcluded.peak_bytes),
    )


def _sentences(profile: Profile, budget: Budget, shortage: Shortage) -> str:
    device, smallest = profile.device, format_bytes(shortage.smallest_bytes)
    usable = ""
    if budget.asked_bytes > device.usable_bytes:
        usable = f" ({format_bytes(device.usable_bytes)} of it usable on {device.name})"
    advice = f"Give it at least {smallest}"
    if shortage.smallest_bytes > device.usable_bytes:
        advice += ", which takes a larger GPU"
    if shortage.permitted_bytes is not None:
        advice += f", or allow {shortage.permission!r}, with which {format_bytes(shortage.permitted_bytes)} would do"
    excluded = [repr(c.name) for c in profile.components if c.name in profile.excluded]
    if excluded and shortage.unexcluded_bytes <= budget.limit_bytes:
        advice += (
            f". {' and '.join(excluded)} {'is' if len(excluded) == 1 else 'are'} excluded from offload (the "
            f"pipeline's `_exclude_from_cpu_offload`); without that {format_bytes(shortage.unexcluded_bytes)} would do"
        )
    return (
        f"{profile.pipeline_class} does not fit {format_bytes(budget.asked_bytes)}{usable}: stage {shortage.stage!r} "
        f"alone needs {smallest}, {format_bytes(shortage.other_bytes)} of it besides weights. {advice}."
    )
