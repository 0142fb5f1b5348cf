"""Where modules go that came into a component after its plan was made: LoRA's, an IP-Adapter's, fused projections.

They join the group of the planned module before them, so they are there when it runs, and give way when it does. What has
no `forward` that could be noticed is used by others, who knows when: it joins the root group, as weights of the component's
own do.
"""

from collections.abc import Collection, Iterable, Mapping

from torch import nn

from vramtune.compiled import unit_around

Paths = dict[str, tuple[str, ...]]
"""Paths of modules by name of their group."""


def join(
    owners: Iterable[str],
    modules: Mapping[str, nn.Module],
    planned: Mapping[str, str],
    unused: Collection[str],
    root: str,
) -> Paths:
    """Find a group for each new module with weights of its own (`owners`).

    `modules` are the component's by path, `planned` names the group of each planned one, `unused` are those that the plan
    found and does not use. A whole module that came in goes with what it contains.
    """
    before, last = {}, root
    for path in modules:
        last = before[path] = planned.get(path, last)
    old = {outer for path in (*planned, *unused) for outer in ("", *_ancestry(path))}
    found: dict[str, dict[str, None]] = {}
    for owner in owners:
        came_in = [p for p in _ancestry(owner) if p not in old and type(modules[p]).forward is not _NO_FORWARD]
        group = before[came_in[-1]] if came_in else root
        found.setdefault(group, {})[owner if group == root else came_in[-1]] = None
    return {group: tuple(paths) for group, paths in found.items()}


def in_units(
    planned: Paths, modules: Mapping[str, nn.Module], units: Collection[str], unused: Collection[str], root: str
) -> Paths:
    """The planned modules by group, as they can be noticed where some are called compiled (`units`).

    No hook runs inside such a unit, so all of it has one group: that of its first module.
    """
    if not units:
        return planned
    group_of = {path: group for group, paths in planned.items() for path in paths}
    found = {group: [p for p in paths if unit_around(p, units) is None] for group, paths in planned.items()}
    for unit in units:
        inside = [path for path in modules if unit_around(path, units) == unit]
        group = next((group_of[path] for path in inside if path in group_of), None)
        if unit == "" or group == root:
            found[root] += [path for path in inside if path in group_of or path not in unused]
        elif group is not None:
            found[group].append(unit)
    return {group: tuple(paths) for group, paths in found.items()}


def _ancestry(path: str) -> Iterable[str]:
    """A module's path and those of the modules around it, but for the component: `a.b`, `a`."""
    while path:
        yield path
        path = path.rpartition(".")[0]


_NO_FORWARD = nn.Module.forward
"""That of lists, dictionaries of modules or parameters."""
