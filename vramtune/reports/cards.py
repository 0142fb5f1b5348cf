"""A noun in short: a verdict, the few figures that matter, tables. Notebooks show it; a report opens with it.

An estimate and a measurement never share a figure: every figure says which of the two it is.
"""

from dataclasses import dataclass, replace
from functools import partial, singledispatch
from typing import Literal

from vramtune.errors import UsageError
from vramtune.reports import tables
from vramtune.reports.columns import Table
from vramtune.reports.reasons import sentence
from vramtune.schema import (
    PLAN_MODE,
    Comparison,
    Engine,
    Estimate,
    Frontier,
    Measurement,
    ModeEstimate,
    Plan,
    Profile,
    RankedGpu,
    Ranking,
    Source,
    Timeline,
    Workload,
)
from vramtune.units import format_bytes, format_rate, format_seconds

LONG = 20
"""Characters of a setting that is still shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One figure that people look for first."""

    label: str
    value: str
    source: Source
    note: str = ""
    share: float | None = None
    """Share of the limit that the note names, 0 to 1: drawn as a bar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer in a word and a sentence."""

    word: str
    tone: Literal["good", "attention", "bad"]
    source: Source
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A noun in short."""

    title: str
    call: str = ""
    """The model and its call's settings, in short."""
    source: Source | None = None
    """None where figures of both kinds stand side by side, each marked."""
    verdict: Verdict | None = None
    summary: str = ""
    facts: tuple[Fact, ...] = ()
    reasons: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: tuple[Table, ...] = ()
    """Tables that are shown on demand; in text they are left out."""


@singledispatch
def card(noun: object) -> Card:
    """A profile, plan, comparison, frontier, timeline or measurement in short."""
    known = ", ".join(kind.__name__ for kind in card.registry if kind is not object)
    raise UsageError(f"Expected one of {known}; got {type(noun).__name__}.")


@card.register(Profile)
def _profile_card(profile: Profile) -> Card:
    return Card(
        title=f"What one call of {profile.pipeline_class} costs on {profile.device.name}",
        call=call(profile.workload),
        source="predicted",
        facts=_profile_facts(profile),
        tables=(tables.component_table(profile), tables.activity_table(profile)),
    )


def _profile_facts(profile: Profile) -> tuple[Fact, ...]:
    compute = sum(stage.num_iterations * stage.seconds for stage in profile.stages)
    weights = sum(component.weights.num_bytes for component in profile.components)
    largest = max(profile.stages, key=lambda stage: stage.planned_activation_bytes + stage.pipeline_bytes)
    activation_bytes = largest.planned_activation_bytes + largest.pipeline_bytes
    device, total = profile.device, format_bytes(profile.device.total_bytes)
    return (
        _predicted("weights", format_bytes(weights)),
        _predicted("most activations", format_bytes(activation_bytes), f"in {largest.name}"),
        _predicted("compute per call", format_seconds(compute), "no plan is faster"),
        _fact(device.source, "usable GPU memory", format_bytes(device.usable_bytes), f"of {total}"),
    )


def _fact(source: Source, label: str, value: str, note: str = "", *, share: float | None = None) -> Fact:
    return Fact(label=label, value=value, note=note, share=share, source=source)


_predicted, _measured = partial(_fact, "predicted"), partial(_fact, "measured")


@card.register(Plan)
def _plan_card(plan: Plan) -> Card:
    return tuned_card(plan, None)


def tuned_card(plan: Plan, measurement: Measurement | None, *, embedding_bytes: int | None = None) -> Card:
    """A tuned pipeline: the plan, and once a call has finished, what was measured beside it.

    `embedding_bytes` is what kept embeddings take of the host now; None where none are kept.
    """
    return Card(
        title=plan_title(plan),
        call=call(plan.workload),
        verdict=verdict(plan, measurement),
        facts=(*plan_facts(plan, measurement), *_embedding_facts(embedding_bytes)),
        reasons=tuple(map(sentence, plan.reasons)),
        tables=(*([tables.beside_table(plan, measurement)] if measurement else []), tables.placement_table(plan)),
        folded=(tables.stage_table(plan),),
    )


@card.register(Comparison)
def _comparison_card(comparison: Comparison) -> Card:
    return Card(
        title=f"Ways to run {comparison.pipeline_class} in {limit(comparison)} on {comparison.device.name}",
        call=call(comparison.workload),
        source="predicted",
        summary=comparison_sentence(comparison),
        tables=(tables.mode_table(comparison),),
    )


@card.register(Frontier)
def _frontier_card(frontier: Frontier) -> Card:
    return Card(
        title=f"{frontier.pipeline_class} on {frontier.device.name}: seconds against memory",
        call=call(frontier.workload),
        source="predicted",
        summary=frontier_sentence(frontier),
        tables=(tables.point_table(frontier), tables.stock_table(frontier)),
    )


@card.register(Ranking)
def _ranking_card(ranking: Ranking) -> Card:
    return Card(
        title=f"Which GPU runs {ranking.pipeline_class}{_asked(ranking)}",
        call=call(ranking.workload),
        source="predicted",
        summary=ranking_sentence(ranking),
        tables=(tables.ranking_table(ranking),),
    )


def _asked(ranking: Ranking) -> str:
    limits = [format_bytes(ranking.asked_bytes)] if ranking.asked_bytes is not None else []
    limits += [f"{format_seconds(ranking.most_seconds)} per call"] if ranking.most_seconds is not None else []
    return f" in {' and '.join(limits)}" if limits else ""


@card.register(Timeline)
def _timeline_card(timeline: Timeline) -> Card:
    peak = max(level.held_bytes for level in timeline.memory)
    return Card(
        title=f"{plan_title(timeline.plan)}, copy by copy",
        call=call(timeline.plan.workload),
        source="predicted",
        facts=(_predicted("peak GPU memory", format_bytes(peak)), _busy(timeline, "compute"), _busy(timeline, "copy")),
        tables=(tables.owner_table(timeline),),
    )


def _busy(timeline: Timeline, engine: Engine) -> Fact:
    """The share of the call in which an engine works."""
    spans = (span for span in timeline.spans if span.engine == engine)
    share = sum(span.end_seconds - span.start_seconds for span in spans) / timeline.memory[-1].end_seconds
    return _predicted(f"{engine} busy", f"{share:.0%}", "of the call", share=share)


@card.register(Measurement)
def _measurement_card(measurement: Measurement) -> Card:
    return Card(
        title=f"The last call on {measurement.device_name}",
        source="measured",
        facts=_measured_facts(measurement),
        tables=(tables.measured_table(measurement),),
    )


# ---------------------------------------------------------------------------------------------------
# words and figures, which the report uses too


def plan_title(plan: Plan) -> str:
    """What runs where, in how much."""
    return f"{plan.pipeline_class} in {format_bytes(plan.asked_bytes)} of {plan.device_name}"


def call(workload: Workload) -> str:
    """The model and its call's settings without its prompts; of those that are long (a latent, an image) only the name."""
    shown = [workload.method] if workload.is_of_method else []
    shown += [
        f"{name}={value if len(str(value)) <= LONG else '...'}"
        for name, value in workload.call_kwargs.items()
        if isinstance(value, int | float) or "prompt" not in name
    ]
    quantized = ", ".join(f"{name}={how}" for name, how in workload.quantize.items())
    model = [f"{workload.model} ({quantized})" if quantized else workload.model] if workload.model else []
    return ", ".join([*model, *(shown or ["the pipeline's own settings"])])


def limit(held_to: Plan | Comparison) -> str:
    """The budget, and what of it the card can give."""
    if held_to.asked_bytes == held_to.budget_bytes:
        return format_bytes(held_to.budget_bytes)
    return f"{format_bytes(held_to.budget_bytes)} usable of {format_bytes(held_to.asked_bytes)} asked"


def verdict(plan: Plan, measurement: Measurement | None) -> Verdict:
    """Whether the plan fits: as predicted, or as measured once a call has finished."""
    peak_bytes = measurement.peak_bytes if measurement else plan.estimate.peak_bytes
    fits = peak_bytes <= plan.budget_bytes
    is_complete = measurement is None or measurement.context_bytes is not None
    words = [f"Peak {format_bytes(peak_bytes)} {'within' if fits else 'above'} {limit(plan)}."]
    if not is_complete:
        words.append("This is what PyTorch reserved; what the CUDA context took beside it is unknown.")
    is_narrow = fits and not measurement and plan.estimate.is_narrow
    if is_narrow:
        words.append("If activations take as much as they may, no plan fits: have some memory in reserve.")
    if plan.permissions:
        words.append(f"Allowed and used: {', '.join(plan.permissions)}.")
    if measurement and measurement.num_out_of_memory:
        times = measurement.num_out_of_memory
        words.append(
            f"The GPU ran out of memory {'once' if times == 1 else f'{times} times'}; the component was run again with "
            "fewer weights kept."
        )
    return Verdict(
        word=_word(fits=fits, is_narrow=is_narrow, is_complete=is_complete),
        tone="attention" if is_narrow else "good" if fits else "bad",
        source="measured" if measurement else "predicted",
        sentence=" ".join(words),
    )


def _word(*, fits: bool, is_narrow: bool, is_complete: bool) -> str:
    if not fits:
        return "Over the budget"
    if is_narrow:
        return "Fits narrowly"
    return "Fits" if is_complete else "Ran"


def likely_seconds(estimate: Estimate | ModeEstimate) -> str:
    """Between what the seconds are likely to be; nothing where they are certain."""
    low, high = (format_seconds(end.seconds) for end in (estimate.low, estimate.high))
    if low == high:
        return ""
    shared = low.split()[1:] == high.split()[1:] and low.count(" ") == 1  # the unit, where there is one
    return f"{low.split()[0] if shared else low} to {high}"


def plan_facts(plan: Plan, measurement: Measurement | None) -> tuple[Fact, ...]:
    """What a call costs: as predicted, or as measured beside the prediction. The bound is only ever predicted."""
    estimate, budget = plan.estimate, f"of {format_bytes(plan.budget_bytes)}"
    peak, seconds = format_bytes(estimate.peak_bytes), format_seconds(estimate.seconds)
    moved, above = format_bytes(estimate.moved_bytes), f"{estimate.gap_fraction:z.1%} above the bound"
    bound = _predicted("bound", format_seconds(estimate.bound_seconds), "no plan in the budget is faster")
    host = _host_fact(plan)
    if measurement is None:
        return (
            _predicted("peak GPU memory", peak, budget, share=estimate.peak_bytes / plan.budget_bytes),
            _predicted("per call", seconds, ", ".join(filter(None, (likely_seconds(estimate), above)))),
            bound,
            _predicted("first call", format_seconds(estimate.first_call_seconds), "nothing is on the GPU yet"),
            _predicted("moved to the GPU", moved, "per call"),
            host,
        )
    share = measurement.peak_bytes / plan.budget_bytes
    peak_fact, seconds_fact, exposed, moved_fact = _measured_facts(measurement)
    lacking = f"{peak_fact.note}; " if peak_fact.note else ""
    return (
        replace(peak_fact, note=f"{lacking}{budget}; predicted {peak}", share=share),
        replace(seconds_fact, note=f"predicted {seconds}"),
        exposed,
        replace(moved_fact, note=f"predicted {moved}"),
        bound,
        host,
    )


def _host_fact(plan: Plan) -> Fact:
    """What weights take of the host, and how much of that is page-locked."""
    host_bytes, limit_bytes = plan.estimate.host_bytes, plan.ram_bytes
    locked = f"{format_bytes(plan.estimate.locked_bytes)} page-locked"
    if plan.estimate.file_bytes:
        locked += f", {format_bytes(plan.estimate.file_bytes)} more in files"
    if plan.storage_bytes_per_second is not None:
        locked += f", read at {format_rate(plan.storage_bytes_per_second)} ({plan.storage_source})"
    if limit_bytes is None:
        return _predicted("host memory", format_bytes(host_bytes), locked)
    share = host_bytes / limit_bytes if limit_bytes else None
    return _predicted("host memory", format_bytes(host_bytes), f"of {format_bytes(limit_bytes)}, {locked}", share=share)


def _embedding_facts(num_bytes: int | None) -> tuple[Fact, ...]:
    if num_bytes is None:
        return ()
    return (_measured("embeddings kept", format_bytes(num_bytes), "of host memory, beside what weights take"),)


def _measured_facts(measurement: Measurement) -> tuple[Fact, Fact, Fact, Fact]:
    exposed = sum(stage.exposed_copy_seconds for stage in measurement.stages)
    lacking = "" if measurement.context_bytes is not None else "without the CUDA context"
    return (
        _measured("peak GPU memory", format_bytes(measurement.peak_bytes), lacking),
        _measured("last call", format_seconds(measurement.seconds)),
        _measured("exposed copy", format_seconds(exposed), "the GPU waited for copies"),
        _measured("moved to the GPU", format_bytes(measurement.moved_bytes)),
    )


def comparison_sentence(comparison: Comparison) -> str:
    """How many stock modes fit, the fastest of them, the plan and the bound."""
    fitting = [mode for mode in comparison.stock if mode.fits]
    plan = comparison.plan_mode
    ours = (
        f"{PLAN_MODE} takes {_per_call(plan)}; no plan can beat {format_seconds(comparison.bound_seconds)}."
        if plan and comparison.bound_seconds is not None
        else f"No plan of {PLAN_MODE}'s fits."
    )
    if not fitting:
        return f"No stock diffusers mode fits. {ours}"
    fastest = min(fitting, key=lambda mode: mode.seconds)
    return (
        f"{len(fitting)} of {len(comparison.stock)} stock diffusers modes fit; the fastest, “{fastest.mode}”, takes "
        f"{_per_call(fastest)}. {ours}"
    )


def _per_call(mode: ModeEstimate) -> str:
    return f"{format_seconds(mode.seconds)} per call"


def ranking_sentence(ranking: Ranking) -> str:
    """How many GPUs do it, the fastest of them, and the one with the least memory."""
    fitting = [gpu for gpu in ranking.gpus if ranking.is_in_time(gpu)]
    if not fitting:
        nearest = min(ranking.gpus, key=lambda gpu: gpu.least_bytes)
        slow = sum(gpu.fits for gpu in ranking.gpus)
        late = f"; on {slow} of them it fits and takes longer" if slow else ""
        return f"None of {len(ranking.gpus)} GPUs does it{late}. It needs {format_bytes(nearest.least_bytes)} at the least."
    fastest, smallest = fitting[0], min(fitting, key=lambda gpu: (gpu.device.total_bytes, gpu.seconds))
    ends = [f"the fastest is {fastest.device.name} ({_with_bound(fastest)})"]
    if smallest is not fastest:
        ends.append(f"with the least memory {smallest.device.name} ({_with_bound(smallest)})")
    return f"{len(fitting)} of {len(ranking.gpus)} GPUs do it: {', '.join(ends)}."


def _with_bound(gpu: RankedGpu) -> str:
    assert gpu.best is not None
    return f"{format_seconds(gpu.best.seconds)} per call, bound {format_seconds(gpu.best.estimate.bound_seconds)}"


def frontier_sentence(frontier: Frontier) -> str:
    """The two ends of the curve."""
    least, most = (
        f"{format_bytes(point.budget_bytes)} ({format_seconds(point.seconds)} per call, "
        f"bound {format_seconds(point.estimate.bound_seconds)})"
        for point in (frontier.points[0], frontier.points[-1])
    )
    ends = f"It takes {least}" if len(frontier.points) == 1 else f"From {least} to {most}"
    return f"{ends}; more memory saves no time on this GPU."
