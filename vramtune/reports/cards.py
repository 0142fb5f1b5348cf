"""A noun in short: a verdict, the few figures that matter, tables. Notebooks show it; a report opens with it.

An estimate and a measurement never share a figure: every figure says which of the two it is.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Literal

from vramtune.errors import UsageError
from vramtune.reports.rows import Tuned
from vramtune.reports.tables import (
    Grid,
    beside_grid,
    component_grid,
    measured_grid,
    mode_grid,
    owner_grid,
    placement_grid,
    point_grid,
    stage_grid,
)
from vramtune.schema import (
    PLAN_MODE,
    Comparison,
    Engine,
    Frontier,
    Measurement,
    ModeEstimate,
    Plan,
    Profile,
    Source,
    Timeline,
)
from vramtune.units import format_bytes, format_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One figure that people look for first."""

    label: str
    value: str
    source: Source
    note: str = ""
    share: float | None = None
    """Of a limit that the note names, 0 to 1: drawn as a bar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer in a word and a sentence."""

    word: str
    tone: Literal["good", "bad"]
    source: Source
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A noun in short."""

    title: str
    source: Source | None = None
    """None where figures of both kinds stand side by side, each marked."""
    verdict: Verdict | None = None
    summary: str = ""
    facts: tuple[Fact, ...] = ()
    reasons: tuple[str, ...] = ()
    grids: tuple[Grid, ...] = ()
    folded: tuple[Grid, ...] = ()
    """Shown on demand."""


@singledispatch
def card(noun: object) -> Card:
    """A profile, plan, comparison, frontier, timeline, measurement or tuned pipeline in short."""
    if isinstance(noun, Tuned):
        return _tuned_card(noun)
    known = ", ".join(kind.__name__ for kind in card.registry if kind is not object)
    raise UsageError(f"A card shows a {known} or a tuned pipeline; got {type(noun).__name__}.")


@card.register(Profile)
def _profile_card(profile: Profile) -> Card:
    return Card(
        title=f"What one call of {profile.pipeline_class} costs on {profile.device.name}",
        source=profile.source,
        facts=tuple(_profile_facts(profile)),
        grids=(component_grid(profile),),
    )


def _profile_facts(profile: Profile) -> Iterable[Fact]:
    compute = sum(stage.num_iterations * stage.seconds for stage in profile.stages)
    weights = sum(component.weights.num_bytes for component in profile.components)
    largest = max(profile.stages, key=lambda stage: stage.activation_bytes + stage.pipeline_bytes)
    yield Fact(label="weights", value=format_bytes(weights), source=profile.source)
    yield Fact(
        label="activations at most",
        value=format_bytes(largest.activation_bytes + largest.pipeline_bytes),
        note=f"in {largest.name}",
        source=profile.source,
    )
    yield Fact(
        label="compute per call",
        value=format_seconds(compute),
        note="no plan is faster",
        source=profile.source,
    )


@card.register(Plan)
def _plan_card(plan: Plan) -> Card:
    return Card(
        title=plan_title(plan),
        verdict=verdict(plan),
        facts=plan_facts(plan),
        reasons=plan.reasons,
        grids=(placement_grid(plan),),
        folded=(stage_grid(plan),),
    )


@card.register(Comparison)
def _comparison_card(comparison: Comparison) -> Card:
    return Card(
        title=f"Ways to run it in {_limit(comparison)}",
        source="predicted",
        summary=comparison_sentence(comparison),
        grids=(mode_grid(comparison),),
    )


@card.register(Frontier)
def _frontier_card(frontier: Frontier) -> Card:
    return Card(
        title="Seconds against memory",
        source="predicted",
        summary=frontier_sentence(frontier),
        grids=(point_grid(frontier),),
    )


@card.register(Timeline)
def _timeline_card(timeline: Timeline) -> Card:
    highest = max(timeline.memory, key=lambda level: sum(level.owners.values()))
    peak = Fact(label="peak GPU memory", value=format_bytes(sum(highest.owners.values())), source="predicted")
    return Card(
        title="A call, copy by copy",
        source="predicted",
        facts=(peak, _busy(timeline, "compute"), _busy(timeline, "copy")),
        grids=(owner_grid(highest),),
    )


def _busy(timeline: Timeline, engine: Engine) -> Fact:
    """For how much of the call an engine works."""
    spans = (span for span in timeline.spans if span.engine == engine)
    share = sum(span.end_seconds - span.start_seconds for span in spans) / timeline.memory[-1].end_seconds
    return Fact(
        label=f"{engine} busy", value=f"{share:.0%}", note="of the call", share=share, source="predicted"
    )


@card.register(Measurement)
def _measurement_card(measurement: Measurement) -> Card:
    return Card(
        title=f"The last call on {measurement.device_name}",
        source="measured",
        facts=tuple(_measured_facts(measurement)),
        grids=(measured_grid(measurement),),
    )


def _tuned_card(tuned: Tuned) -> Card:
    """A tuned pipeline: the plan, and once a call has run, what was measured beside it."""
    plan, measured = tuned.plan, tuned.measured
    if measured is None:
        return _plan_card(plan)
    beside = beside_grid(measured, plan=plan)
    return Card(
        title=plan_title(plan),
        verdict=verdict(plan, measured=measured),
        facts=measured_facts(measured, plan=plan),
        reasons=plan.reasons,
        grids=(beside,),
        folded=(placement_grid(plan), stage_grid(plan)),
    )


# ---------------------------------------------------------------------------------------------------
# words and figures, which the report uses too


def plan_title(plan: Plan) -> str:
    """What runs where, in how much."""
    return f"{plan.pipeline_class} in {format_bytes(plan.asked_bytes)} of {plan.device_name}"


def verdict(plan: Plan, *, measured: Measurement | None = None) -> Verdict:
    """Whether it fits: as measured, where it has been."""
    if measured is None:
        return _verdict(plan, peak_bytes=plan.estimate.peak_bytes, source="predicted")
    if measured.context_bytes is None and measured.peak_bytes <= plan.budget_bytes:
        return Verdict(
            word="Ran",
            tone="good",
            source="measured",
            sentence=f"PyTorch reserved at most {format_bytes(measured.peak_bytes)} of {_limit(plan)}; nothing tells "
            f"what the CUDA context took beside it.{_allowed(plan)}{_trouble(measured)}",
        )
    found = _verdict(plan, peak_bytes=measured.peak_bytes, source="measured")
    return replace(found, sentence=found.sentence + _trouble(measured))


def _verdict(plan: Plan, *, peak_bytes: int, source: Source) -> Verdict:
    fits = peak_bytes <= plan.budget_bytes
    return Verdict(
        word="Fits" if fits else "Over the budget",
        tone="good" if fits else "bad",
        source=source,
        sentence=f"Peak {format_bytes(peak_bytes)} of {_limit(plan)}.{_allowed(plan)}",
    )


def _limit(held_to: Plan | Comparison) -> str:
    """The budget, and what of it the card can give."""
    limit = format_bytes(held_to.budget_bytes)
    if held_to.asked_bytes > held_to.budget_bytes:
        limit += f" usable ({format_bytes(held_to.asked_bytes)} asked)"
    return limit


def _allowed(plan: Plan) -> str:
    return f" Allowed and used: {', '.join(plan.permissions)}." if plan.permissions else ""


def _trouble(measured: Measurement) -> str:
    """How often memory ran out on the way."""
    times = measured.num_out_of_memory
    return f" Memory ran out {times}x; less was kept and the work done again." if times else ""


def plan_facts(plan: Plan) -> tuple[Fact, ...]:
    """What the plan is predicted to cost."""
    estimate = plan.estimate
    return (
        Fact(
            label="peak GPU memory",
            value=format_bytes(estimate.peak_bytes),
            note=f"of {format_bytes(plan.budget_bytes)}",
            share=estimate.peak_bytes / plan.budget_bytes,
            source="predicted",
        ),
        Fact(
            label="per call",
            value=format_seconds(estimate.seconds),
            note=f"{estimate.gap_fraction:z.1%} above the bound",
            source="predicted",
        ),
        _bound(plan),
        Fact(
            label="first call",
            value=format_seconds(estimate.first_call_seconds),
            note="nothing is on the GPU yet",
            source="predicted",
        ),
        Fact(
            label="copied to the GPU",
            value=format_bytes(estimate.moved_bytes),
            note="per call",
            source="predicted",
        ),
    )


def measured_facts(measured: Measurement, *, plan: Plan) -> tuple[Fact, ...]:
    """What the last call took, each figure beside its prediction, and the bound, which is only ever predicted."""
    guess = plan.estimate
    peak, seconds, waiting, moved = _measured_facts(measured)
    limit = format_bytes(plan.budget_bytes)
    return (
        replace(
            peak,
            note=f"of {limit}; predicted {format_bytes(guess.peak_bytes)}",
            share=measured.peak_bytes / plan.budget_bytes,
        ),
        replace(seconds, note=f"predicted {format_seconds(guess.seconds)}"),
        waiting,
        replace(moved, note=f"predicted {format_bytes(guess.moved_bytes)}"),
        _bound(plan),
    )


def _measured_facts(measured: Measurement) -> tuple[Fact, Fact, Fact, Fact]:
    waiting = sum(stage.exposed_copy_seconds for stage in measured.stages)
    return (
        Fact(
            label="peak GPU memory",
            value=format_bytes(measured.peak_bytes),
            note="" if measured.context_bytes is not None else "without the CUDA context",
            source="measured",
        ),
        Fact(label="last call", value=format_seconds(measured.seconds), source="measured"),
        Fact(label="of it waiting for copies", value=format_seconds(waiting), source="measured"),
        Fact(label="copied to the GPU", value=format_bytes(measured.moved_bytes), source="measured"),
    )


def _bound(plan: Plan) -> Fact:
    return Fact(
        label="bound",
        value=format_seconds(plan.estimate.bound_seconds),
        note="no plan in the budget is faster",
        source="predicted",
    )


def comparison_sentence(comparison: Comparison) -> str:
    """How many stock modes fit, the fastest of them, the plan and the bound."""
    num_stock = len(comparison.stock)
    fitting = [mode for mode in comparison.stock if mode.fits]
    if not fitting:
        return f"No stock diffusers mode fits{_plan_clause(comparison)}."
    best = min(fitting, key=lambda mode: mode.seconds)
    return (
        f"Of {num_stock} stock diffusers modes {len(fitting)} fit{'s' if len(fitting) == 1 else ''}; "
        f"the fastest of them, “{best.mode}”, takes {_per_call(best)}{_plan_clause(comparison)}."
    )


def _plan_clause(comparison: Comparison) -> str:
    """How long the plan takes beside them, and what none beats."""
    if comparison.plan is None or comparison.bound_seconds is None:
        return f"; no plan of {PLAN_MODE}'s fits"
    bound = format_seconds(comparison.bound_seconds)
    return f"; {PLAN_MODE} takes {_per_call(comparison.plan)}, where no plan beats {bound}"


def _per_call(mode: ModeEstimate) -> str:
    return f"{format_seconds(mode.seconds)} per call"


def frontier_sentence(frontier: Frontier) -> str:
    """The two ends of the curve."""
    least, most = (
        f"{format_bytes(point.budget_bytes)} ({format_seconds(point.seconds)} per call, "
        f"bound {format_seconds(point.bound_seconds)})"
        for point in (frontier.points[0], frontier.points[-1])
    )
    if len(frontier.points) == 1:
        return f"It takes {least}; more buys nothing on this GPU."
    return f"From {least} to {most}; more buys nothing on this GPU."
