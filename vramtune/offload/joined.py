"""Where modules go that came into a component after its plan was made: LoRA's, an IP-Adapter's, fused projections.

They join the group of the planned module before them, so they are there when it runs, and give way when it does. What has
no `forward` that could be noticed is used by others, who knows when: it joins the root group, as weights of the component's
own do.
"""

from collections.abc import Collection, Iterable, Mapping

from torch import nn

Joined = dict[str, tuple[str, ...]]
"""Paths of modules by name of the group that they joined."""


def join(
    owners: Iterable[str],
    modules: Mapping[str, nn.Module],
    planned: Mapping[str, str],
    unused: Collection[str],
    root: str,
) -> Joined:
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


def _ancestry(path: str) -> Iterable[str]:
    """A module's path and those of the modules around it, but for the component: `a.b`, `a`."""
    while path:
        yield path
        path = path.rpartition(".")[0]


_NO_FORWARD = nn.Module.forward
"""That of lists, dictionaries of modules or parameters."""
