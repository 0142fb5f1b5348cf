"""An answer as one JSON object, for other programs."""

import msgspec

from vramtune.errors import BudgetError
from vramtune.reports.reasons import sentence
from vramtune.reports.rows import component_rows, gpu_rows, mode_rows, point_rows, stock_rows
from vramtune.schema import SCHEMA_VERSION, Comparison, Frontier, Plan, Profile, Ranking

Fields = dict[str, object]


def plan_json(profile: Profile, plan: Plan, comparison: Comparison) -> str:
    """A plan that fits: `"fits": true`, the profile in short, the whole plan, the comparison."""
    return object_json(
        fits=True,
        profile=_profile(profile, permissions=plan.permissions),
        plan=_plan(plan),
        comparison=_comparison(comparison),
    )


def budget_json(error: BudgetError, profile: Profile, comparison: Comparison) -> str:
    """A budget that nothing fits: `"fits": false`, and what would."""
    return object_json(
        fits=False,
        error=str(error),
        resource=error.resource,
        budget_bytes=error.budget_bytes,
        smallest_bytes=error.smallest_bytes,
        permission=error.permission,
        permitted_bytes=error.permitted_bytes,
        profile=_profile(profile),
        comparison=_comparison(comparison),
    )


def profile_json(profile: Profile) -> str:
    """What one call costs, in short."""
    return object_json(profile=_profile(profile))


def comparison_json(profile: Profile, comparison: Comparison) -> str:
    """The stock modes beside a plan that fits."""
    return object_json(fits=True, profile=_profile(profile), comparison=_comparison(comparison))


def frontier_json(profile: Profile, frontier: Frontier) -> str:
    """Latency against VRAM, where something fits, without the stages of each plan."""
    curve = {"points": point_rows(frontier), "stock": stock_rows(frontier)}
    return object_json(fits=True, profile=_profile(profile), frontier=curve)


def ranking_json(ranking: Ranking) -> str:
    """Each GPU with what the call takes on it, in order."""
    return object_json(
        fits=ranking.fits,
        ranking={
            "pipeline_class": ranking.pipeline_class,
            "method": ranking.workload.method,
            "call_kwargs": ranking.workload.call_kwargs,
            "asked_bytes": ranking.asked_bytes,
            "most_seconds": ranking.most_seconds,
            "source": "predicted",
            "gpus": gpu_rows(ranking),
        },
    )


def _profile(profile: Profile, *, permissions: tuple[str, ...] = ()) -> Fields:
    """A profile without its layers and segments: one row per component, its calls those made under the permissions."""
    return {
        "pipeline_class": profile.pipeline_class,
        "method": profile.workload.method,
        "call_kwargs": profile.workload.call_kwargs,
        "device_name": profile.device.name,
        "device_total_bytes": profile.device.total_bytes,
        "device_usable_bytes": profile.device.usable_bytes,
        "source": "predicted",
        "components": component_rows(profile, permissions=permissions),
    }


def _plan(plan: Plan) -> Fields:
    """The plan's own data, what follows from that of its stages, and its reasons in words too."""
    whole: Fields = msgspec.to_builtins(plan)
    estimate: Fields = msgspec.to_builtins(plan.estimate)
    stages: list[Fields] = [
        {
            **msgspec.to_builtins(stage),
            "peak_bytes": stage.peak_bytes,
            "exposed_copy_seconds": stage.exposed_copy_seconds,
        }
        for stage in plan.estimate.stages
    ]
    return {**whole, "estimate": {**estimate, "stages": stages}, "why": list(map(sentence, plan.reasons))}


def _comparison(comparison: Comparison) -> Fields:
    """A comparison without the whole plan."""
    return {
        "asked_bytes": comparison.asked_bytes,
        "budget_bytes": comparison.budget_bytes,
        "bound_seconds": comparison.bound_seconds,
        "modes": mode_rows(comparison),
    }


def object_json(**fields: object) -> str:
    """One object of rows or nouns, with their version; without the envelope that files have."""
    answer = msgspec.json.encode({"schema_version": SCHEMA_VERSION, **fields})
    return msgspec.json.format(answer, indent=2).decode()
