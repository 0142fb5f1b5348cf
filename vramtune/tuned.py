"""The handle of a tuned pipeline: what was predicted, what was measured, and the way back."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vramtune.errors import BudgetError, UsageError
from vramtune.schema import Comparison, GroupChange, Measurement, Plan, Profile, Stage
from vramtune.schema.shown import Printer
from vramtune.tuner.changed import changed_profile
from vramtune.tuner.comparison import compare_plan
from vramtune.tuner.frontier import trace_frontier
from vramtune.tuner.search import plan_again
from vramtune.tuner.simulate import timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

    from vramtune.offload.runtime import Runtime
    from vramtune.reports.cards import Card


logger = logging.getLogger(__name__)


class Tuned:
    """A pipeline under a plan, until `remove()` or the end of a `with` block.

    Shows itself in notebooks and when printed: the plan, and once a call has finished, what it took.
    """

    def __init__(self, runtime: "Runtime", profile: Profile | None) -> None:
        self._runtime, self._first_plan = runtime, runtime.plan
        self._traced = self._made_from = profile
        if profile is not None:
            runtime.on_changed = self._plan_again

    @property
    def plan(self) -> Plan:
        """The plan at work; when weights came into the pipeline or went, the next call makes another one first."""
        return self._runtime.plan

    @property
    def profile(self) -> Profile:
        """What the plan was made from; a stage that ran out of memory has its activations raised by what it took.

        Plan with it again after out of memory. Raises `UsageError` where `install` was not given the profile.
        """
        return _raised(self._known_profile(), self._runtime.overrun_bytes)

    @property
    def measured(self) -> Measurement | None:
        """The last finished call by the device's own counters and events; None before there is one."""
        return self._runtime.measured

    @property
    def is_installed(self) -> bool:
        """Whether the plan is at work."""
        return self._runtime.is_installed

    @property
    def overrun_bytes(self) -> dict[str, int]:
        """Bytes by stage that out-of-memory errors took from the weights' share."""
        return self._runtime.overrun_bytes

    def compare(self) -> Comparison:
        """The stock diffusers modes, the plan and the bound under the same budget, all predicted."""
        return compare_plan(self.profile, self.plan)

    def report(self, path: str | Path) -> None:
        """Write one self-contained HTML page: what was predicted, why, and what the last call took."""
        write_report(self._known_profile(), self.plan, path, measurement=self.measured)

    def plot(self, *, ax: "Axes | None" = None) -> "Axes":
        """Draw what was predicted beside the last call. Raises `UsageError` before a call has finished."""
        measured = self.measured
        if measured is None:
            raise UsageError("Nothing was measured yet. Call the pipeline first.")
        return measured.plot(self.plan, ax=ax)

    def to_frame(self) -> "DataFrame":
        """One row per stage: what was predicted, and once a call has finished, what was measured beside it."""
        from vramtune.reports.frames import tuned_frame

        return tuned_frame(self.plan, self.measured)

    def remove(self) -> None:
        """Give the pipeline back as it was."""
        self._runtime.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        from vramtune.reports.terminal import card_text

        return card_text(self._card()) + ("" if self.is_installed else "\nRemoved: the pipeline is as it was.")

    def _repr_html_(self) -> str:
        from vramtune.reports.notebook import card_html

        return card_html(self._card())

    def _repr_pretty_(self, printer: Printer, cycle: bool) -> None:
        printer.text(repr(self))

    def _card(self) -> "Card":
        from vramtune.reports.cards import tuned_card

        return tuned_card(self.plan, self.measured, embedding_bytes=self._runtime.embedding_bytes)

    def _plan_again(self, changes: Sequence[GroupChange]) -> Plan:
        """A plan for the pipeline after these changes; the first one where nothing fits."""
        assert self._traced is not None
        # Out of memory may have been for what has gone since, but to try is to run out of it again.
        traced = _raised(self._traced, self.overrun_bytes)
        try:
            is_as_first = not changes and traced is self._traced
            # the pipeline's groups are those of the first plan for good
            in_groups = traced.in_groups(is_finer=self._first_plan.is_finer)
            profile = traced if is_as_first else changed_profile(in_groups, changes)
            plan = self._first_plan if is_as_first else plan_again(profile, self._first_plan)
        except BudgetError as error:
            logger.warning(
                "Weights came into the pipeline for which no plan fits. Calls go on with as few of the others on the GPU "
                "as can be, and may run out of memory. %s",
                error,
            )
            self._made_from = self._traced
            return self._first_plan
        self._traced, self._made_from = traced, profile
        return plan

    def _known_profile(self) -> Profile:
        if self._made_from is None:
            raise UsageError(
                "The profile that this plan was made from is not known here. Install the plan with it: "
                "install(pipe, plan, profile=profile)."
            )
        return self._made_from


def write_report(profile: Profile, plan: Plan, path: str | Path, *, measurement: Measurement | None = None) -> None:
    """Write the page with everything that follows from a profile and a plan."""
    from vramtune.reports import html

    html.write_report(
        path,
        profile=profile,
        plan=plan,
        comparison=compare_plan(profile, plan),
        frontier=trace_frontier(profile, allow=plan.permissions),
        timeline=timeline(profile, plan),
        measurement=measurement,
    )


def _raised(profile: Profile, overrun_bytes: Mapping[str, int]) -> Profile:
    """The profile with stages' activations larger by what out-of-memory errors showed."""

    def raised(stage: Stage) -> Stage:
        more = overrun_bytes.get(stage.name, 0)
        activities = tuple(a.with_more(more) for a in stage.activities)
        return replace(stage, activities=activities) if more else stage

    if not overrun_bytes:
        return profile
    variants = (replace(variant, stages=tuple(map(raised, variant.stages))) for variant in profile.variants)
    return replace(profile, stages=tuple(map(raised, profile.stages)), variants=tuple(variants))
