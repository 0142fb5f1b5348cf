"""An answer as one JSON object, for other programs."""

from dataclasses import dataclass

import msgspec

from vramtune.errors import BudgetError
from vramtune.reports.rows import ComponentRow, component_rows
from vramtune.schema import SCHEMA_VERSION, Comparison, Frontier, Plan, Profile, Scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSummary:
    """A profile without its layers and segments."""

    pipeline_class: str
    call_kwargs: dict[str, Scalar | list[Scalar]]
    device_name: str
    device_total_bytes: int
    device_usable_bytes: int
    source: str
    components: tuple[ComponentRow, ...]


def plan_json(profile: Profile, plan: Plan, comparison: Comparison) -> str:
    """What was planned: `"fits": true`, the profile in short, the whole plan, the comparison."""
    return object_json(
        fits=True,
        profile=profile_summary(profile, permissions=plan.permissions),
        plan=plan,
        comparison=comparison,
    )


def budget_json(error: BudgetError, profile: Profile, comparison: Comparison) -> str:
    """That nothing fits: `"fits": false`, and what would."""
    return object_json(
        fits=False,
        error=str(error),
        budget_bytes=error.budget_bytes,
        smallest_bytes=error.smallest_bytes,
        permission=error.permission,
        permitted_bytes=error.permitted_bytes,
        profile=profile_summary(profile),
        comparison=comparison,
    )


def profile_json(profile: Profile) -> str:
    """What one call costs, in short."""
    return object_json(profile=profile_summary(profile))


def comparison_json(profile: Profile, comparison: Comparison) -> str:
    """The stock modes beside a plan that fits."""
    return object_json(fits=True, profile=profile_summary(profile), comparison=comparison)


def frontier_json(profile: Profile, frontier: Frontier) -> str:
    """Latency against VRAM, where something fits."""
    return object_json(fits=True, profile=profile_summary(profile), frontier=frontier)


def profile_summary(profile: Profile, *, permissions: tuple[str, ...] = ()) -> ProfileSummary:
    """A profile in short: one row per component, its calls those made under the permissions."""
    return ProfileSummary(
        pipeline_class=profile.pipeline_class,
        call_kwargs=profile.workload.call_kwargs,
        device_name=profile.device.name,
        device_total_bytes=profile.device.total_bytes,
        device_usable_bytes=profile.device.usable_bytes,
        source=profile.source,
        components=component_rows(profile, permissions=permissions),
    )


def to_text(value: object) -> str:
    """Rows or nouns as JSON, without the envelope that files have."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def object_json(**fields: object) -> str:
    """One object, with the version of its nouns."""
    return to_text({"schema_version": SCHEMA_VERSION, **fields})
