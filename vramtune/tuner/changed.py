"""A profile after weights came into its pipeline or went: what was traced, with the groups as they are now."""

from collections.abc import Sequence
from dataclasses import replace

from vramtune.schema import Component, GroupChange, Profile, WeightGroup, Weights


def changed_profile(profile: Profile, changes: Sequence[GroupChange]) -> Profile:
    """The profile with these changes of its groups.

    Nothing was traced of what came in: it computes nothing and has no activations here, and the stock modes, which move
    layers, do not move it layer by layer.
    """
    by_group = {(change.component, change.group): change for change in changes}

    def changed(component: Component) -> Component:
        found = [by_group.get((component.name, group.name)) for group in component.groups]
        groups = tuple(_changed_group(g, change) for g, change in zip(component.groups, found, strict=True))
        more_bytes = sum(change.more_bytes for change in found if change is not None)
        return replace(component, groups=groups, parameters=_with_more(component.parameters, more_bytes))

    if not changes:
        return profile
    variants = (replace(each, components=tuple(map(changed, each.components))) for each in profile.variants)
    return replace(profile, components=tuple(map(changed, profile.components)), variants=tuple(variants))


def _changed_group(group: WeightGroup, change: GroupChange | None) -> WeightGroup:
    if change is None:
        return group
    return replace(group, weight_bytes=max(group.weight_bytes + change.more_bytes, 0), modules=change.modules)


def _with_more(weights: Weights, more_bytes: int) -> Weights:
    return replace(
        weights,
        num_bytes=max(weights.num_bytes + more_bytes, 0),
        allocated_bytes=max(weights.allocated_bytes + more_bytes, 0),
    )
