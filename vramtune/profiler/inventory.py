"""Weigh a component: its used layers, and the weight groups in which they are moved."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from math import inf

from vramtune.profiler.allocator import rounded_bytes
from vramtune.profiler.record import Part, Trace
from vramtune.profiler.tracker import Stack, Start, Weight
from vramtune.schema import Component, Layer, WeightGroup, Weights
from vramtune.units import MIB

LARGEST_GROUP_BYTES = 128 * MIB
LEAST_NUM_GROUPS = 32
"""No group is more than this share of its component, unless a single layer is: so fine can a plan choose."""
CRUMB_FRACTION = 1 / 16
"""Share of the largest group that may ride along with a layer larger than that: norms beside a convolution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedLayer:
    """A module with weights of its own that the calls used."""

    path: str
    parameters: Weights
    buffers: Weights
    homes: frozenset[str]
    """Modules that were executing at every use of its weights."""

    @property
    def weight_bytes(self) -> int:
        """What it takes in a group's flat buffer."""
        return self.parameters.allocated_bytes + self.buffers.allocated_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Atom:
    """A module whose weights are needed only while its own `forward` runs: what groups are joined from."""

    path: str
    weight_bytes: int
    methods: frozenset[str]
    """The component's methods that execute it."""


def weigh_component(name: str, part: Part, traces: Sequence[Trace]) -> Component:
    """Layers and groups of a component from every different call that the pipeline made of it.

    Weights count at the dtype in which the calls saw them, the largest if they differ: where a pipeline casts a
    component up before it uses it (SDXL its VAE), that is what has to be on the GPU.
    """
    weights = largest_versions([part.weights, *(trace.weights for trace in traces)])
    layers = used_layers(weights, traces)
    used = {layer.path for layer in layers}
    unused = {weight.owners[0] for weight in weights if not used & set(weight.owners)}
    groups = weight_groups(layers, unused, traces)
    return Component(
        name=name,
        class_name=part.class_name,
        dtype=main_dtype([weight for weight in weights if used & set(weight.owners)] or weights),
        parameters=weighed(weight for weight in weights if not weight.is_buffer),
        buffers=weighed(weight for weight in weights if weight.is_buffer),
        groups=groups,
        layers=listed_layers(layers, groups, part.shells),
    )


def largest_versions(versions: Iterable[Iterable[Weight]]) -> list[Weight]:
    """Each weight once, as it was where it took most bytes."""
    largest: dict[str, Weight] = {}
    for weights in versions:
        for weight in weights:
            known = largest.get(weight.name, weight)
            largest[weight.name] = max(known, weight, key=lambda version: version.num_bytes)
    return list(largest.values())


def weighed(weights: Iterable[Weight]) -> Weights:
    """Their bytes, and what they take on the device."""
    sizes = [weight.num_bytes for weight in weights]
    return Weights(
        num_bytes=sum(sizes), allocated_bytes=sum(map(rounded_bytes, sizes)), num_tensors=len(sizes)
    )


def main_dtype(weights: Iterable[Weight]) -> str:
    """The dtype of most bytes; `float32` for a component without weights."""
    by_dtype: Counter[str] = Counter()
    for weight in weights:
        by_dtype[weight.dtype] += weight.num_bytes
    return by_dtype.most_common(1)[0][0] if by_dtype else "float32"


# ---------------------------------------------------------------------------------------------------
# Layers


def used_layers(weights: Sequence[Weight], traces: Sequence[Trace]) -> list[UsedLayer]:
    """The layers that the calls used, in the order in which they first began.

    If any of a layer's own weights was used, all of them count. A tied weight counts once, with the first of
    its layers that was used.
    """
    owners = {weight.name: weight.owners for weight in weights}
    homes: dict[str, frozenset[str]] = {}
    touched: set[str] = set()
    for name, stack in {use for trace in traces for use in trace.usage.weights}:
        homes[name] = homes.get(name, frozenset(stack)) & frozenset(stack)
        touched.add(owner_in_use(owners[name], stack))
    starts = (entry.layer for trace in traces for entry in trace.tape if isinstance(entry, Start))
    order = {path: number for number, path in enumerate(dict.fromkeys(p for p in starts if p in touched))}
    belongings: dict[str, list[Weight]] = {path: [] for path in order}
    for weight in weights:
        if candidates := [path for path in weight.owners if path in order]:
            belongings[min(candidates, key=order.__getitem__)].append(weight)
    return [_used_layer(path, own, homes) for path, own in belongings.items() if own]


def owner_in_use(owners: tuple[str, ...], stack: Stack) -> str:
    """The layer for which a weight was read: the innermost owner that is executing, else the first owner."""
    return next((path for path in reversed(stack) if path in owners), owners[0])


def _used_layer(path: str, weights: list[Weight], homes: dict[str, frozenset[str]]) -> UsedLayer:
    return UsedLayer(
        path=path,
        parameters=weighed(weight for weight in weights if not weight.is_buffer),
        buffers=weighed(weight for weight in weights if weight.is_buffer),
        homes=reduce(
            frozenset.intersection, (homes[weight.name] for weight in weights if weight.name in homes)
        ),
    )


def listed_layers(
    layers: Iterable[UsedLayer], groups: Sequence[WeightGroup], shells: Mapping[str, tuple[str, ...]]
) -> tuple[Layer, ...]:
    """The layers as the profile lists them, each with the group it lies in."""
    blocks = {block for inside in shells.values() for block in inside}
    group_of = {path: number for number, group in enumerate(groups[1:], 1) for path in group.modules}
    return tuple(
        Layer(
            name=layer.path,
            parameters=layer.parameters,
            buffers=layer.buffers,
            group=next((group_of[path] for path in (*ancestry(layer.path), "") if path in group_of), 0),
            block=next((path for path in ancestry(layer.path) if path in blocks), None),
            shell=next((path for path in ancestry(layer.path) if path in shells), ""),
        )
        for layer in layers
    )


def ancestry(path: str) -> Iterator[str]:
    """A module's path and those of all modules around it but the component itself: `a.b`, `a`."""
    while path:
        yield path
        path = path.rpartition(".")[0]


# ---------------------------------------------------------------------------------------------------
# Groups


def weight_groups(
    layers: Sequence[UsedLayer], unused: Collection[str], traces: Sequence[Trace]
) -> tuple[WeightGroup, ...]:
    """The root group and the others, in the order in which they first execute; none holds an unused layer."""
    used_bytes = sum(layer.weight_bytes for layer in layers)
    cap = min(used_bytes // LEAST_NUM_GROUPS, LARGEST_GROUP_BYTES)
    methods: dict[str, frozenset[str]] = {}
    for trace in traces:
        for path in trace.usage.entered:
            methods[path] = methods.get(path, frozenset()) | {trace.method}
    split = {path for layer in unused for path in ("", layer, *ancestry(layer))}
    whole = {path: called_by for path, called_by in methods.items() if path not in split}
    atoms = list(find_atoms("", layers, whole, cap=cap))
    order = {path: number for number, path in enumerate(methods)}
    atoms.sort(key=lambda atom: order[atom.path])
    root_bytes = used_bytes - sum(atom.weight_bytes for atom in atoms)
    moving = {atom.path for atom in atoms}
    left = tuple(layer.path for layer in layers if not moving & {"", *ancestry(layer.path)})
    root = WeightGroup(name="root", weight_bytes=root_bytes, modules=left)
    return root, *join_atoms(atoms, cap=cap)


def find_atoms(
    path: str, layers: Sequence[UsedLayer], methods: dict[str, frozenset[str]], *, cap: int
) -> Iterator[Atom]:
    """Split a module top-down until each piece is small enough, never below a leaf.

    `layers` are those in the module at `path`. What is in no atom is for the root group: the own weights of a
    module that was split, and weights that were used while the module they lie in was not executing.
    """
    weight_bytes = sum(layer.weight_bytes for layer in layers)
    inner = [layer for layer in layers if layer.path != path]
    inner_bytes = sum(layer.weight_bytes for layer in inner)
    is_own_master = path in methods and all(path in layer.homes for layer in layers)
    # Where the module's own weights are most of it (a table of positions), splitting would free little.
    if is_own_master and (weight_bytes <= cap or inner_bytes < weight_bytes / 2):
        yield Atom(path=path, weight_bytes=weight_bytes, methods=methods[path])
        return
    depth = path.count(".") + 2 if path else 1
    by_child: dict[str, list[UsedLayer]] = {}
    for layer in inner:
        by_child.setdefault(".".join(layer.path.split(".")[:depth]), []).append(layer)
    for child, members in by_child.items():
        yield from find_atoms(child, members, methods, cap=cap)


def join_atoms(atoms: Sequence[Atom], *, cap: int) -> Iterator[WeightGroup]:
    """Join neighbours that the same methods execute, up to `cap` bytes a group."""
    for _, run in groupby(atoms, key=lambda atom: atom.methods):
        neighbours = list(run)
        sizes = [atom.weight_bytes for atom in neighbours]
        for start, stop in even_partition(sizes, cap=cap):
            paths = tuple(atom.path for atom in neighbours[start:stop])
            name = paths[0] if len(paths) == 1 else f"{paths[0]} … {paths[-1]}"
            yield WeightGroup(name=name, weight_bytes=sum(sizes[start:stop]), modules=paths)


def even_partition(sizes: Sequence[int], *, cap: int) -> list[tuple[int, int]]:
    """Cut a sequence into (start, stop) runs of at most `cap` in all, as alike as can be.

    Least sum of squared free space, as a typesetter breaks lines: few runs, and no stragglers. One that is larger
    than `cap` is a run of its own, with crumbs beside it.
    """
    best: list[tuple[float, int]] = [(0.0, 0)]
    for stop in range(1, len(sizes) + 1):
        total, largest, choice = 0, 0, (inf, 0)
        for start in range(stop - 1, -1, -1):
            total, largest = total + sizes[start], max(largest, sizes[start])
            if total - max(0, largest - cap) > cap * (1 + CRUMB_FRACTION if largest > cap else 1):
                break
            choice = min(choice, (best[start][0] + float(max(0, cap - total)) ** 2, start))
        best.append(choice)
    runs, stop = [], len(sizes)
    while stop:
        start = best[stop][1]
        runs.append((start, stop))
        stop = start
    return runs[::-1]
