"""From a component's executions to its used layers and the weight groups in which they are moved."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from math import inf

from vramtune.layout import round_up
from vramtune.profiler.execution import Execution
from vramtune.profiler.record import RecordedComponent
from vramtune.profiler.tracker import Stack, Start, Weight
from vramtune.schema import Component, Layer, WeightGroup, Weights
from vramtune.units import MIB

LARGEST_GROUP_BYTES = 128 * MIB
"""A slot is as large as the largest streamed group, so larger ones cost memory; copies are at full rate far below."""
LEAST_NUM_GROUPS = 32
"""Groups are at most this part of a component, unless a single layer is larger: how finely a plan can choose."""
FINER = 4
"""So much smaller are the groups that a plan may take where slots of the others would cost it too much."""
OVERSIZE_EXTRA_FRACTION = 1 / 16
"""Share of the largest group that an oversize layer's group may hold beside it: norms beside a convolution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedLayer:
    """A module with weights of its own that the calls used."""

    path: str
    parameters: Weights
    buffers: Weights
    executing: frozenset[str]
    """Modules that were executing whenever its weights were used."""

    @property
    def weight_bytes(self) -> int:
        """Bytes in a group's flat buffer."""
        return self.parameters.allocated_bytes + self.buffers.allocated_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MovableModule:
    """A module whose weights are needed only while its own `forward` runs; neighbours become a group."""

    path: str
    weight_bytes: int
    methods: frozenset[str]
    """The component's methods that execute it."""


def weigh_component(name: str, recorded: RecordedComponent, executions: Sequence[Execution]) -> Component:
    """Layers and groups of a component from every different call that the pipeline made of it.

    Weights count at the dtype in which the calls saw them, the largest if they differ: where a pipeline casts a
    component up before it uses it (SDXL its VAE), the GPU has to hold the larger weights.
    """
    weights = largest_versions([recorded.weights, *(execution.weights for execution in executions)])
    layers = used_layers(weights, executions)
    used = {layer.path for layer in layers}
    unused = {weight.owners[0] for weight in weights if not used & set(weight.owners)}
    groups, finer_groups = (
        weight_groups(layers, unused, executions, units=recorded.units, fineness=fineness) for fineness in (1, FINER)
    )
    return Component(
        name=name,
        class_name=recorded.class_name,
        dtype=main_dtype([weight for weight in weights if used & set(weight.owners)] or weights),
        parameters=weighed(weight for weight in weights if not weight.is_buffer),
        buffers=weighed(weight for weight in weights if weight.is_buffer),
        computed_bytes=sum(recorded.computed_bytes.get(path, 0) for path in used),
        groups=groups,
        layers=listed_layers(layers, groups, recorded.shells),
        finer_groups=finer_groups if len(finer_groups) > len(groups) else (),
    )


def largest_versions(versions: Iterable[Iterable[Weight]]) -> list[Weight]:
    """Each weight once, in the version with the most bytes."""
    largest: dict[str, Weight] = {}
    for weights in versions:
        for weight in weights:
            known = largest.get(weight.name, weight)
            largest[weight.name] = max(known, weight, key=lambda version: version.num_bytes)
    return list(largest.values())


def weighed(weights: Iterable[Weight]) -> Weights:
    """The sizes of these weights, added up."""
    sizes = [weight.num_bytes for weight in weights]
    return Weights(num_bytes=sum(sizes), allocated_bytes=sum(map(round_up, sizes)), num_tensors=len(sizes))


def main_dtype(weights: Iterable[Weight]) -> str:
    """The dtype of most bytes; `float32` for a component without weights."""
    by_dtype: Counter[str] = Counter()
    for weight in weights:
        by_dtype[weight.dtype] += weight.num_bytes
    return by_dtype.most_common(1)[0][0] if by_dtype else "float32"


# ---------------------------------------------------------------------------------------------------
# Layers


def used_layers(weights: Sequence[Weight], executions: Sequence[Execution]) -> list[UsedLayer]:
    """The layers that the calls used, in the order in which they first began.

    A layer counts with all its own weights if any of them was used. A tied weight counts once, with the first of
    its layers that was used.
    """
    owners = {weight.name: weight.owners for weight in weights}
    executing: dict[str, frozenset[str]] = {}
    used: set[str] = set()
    for name, stack in {use for execution in executions for use in execution.usage.weights}:
        executing[name] = executing.get(name, frozenset(stack)) & frozenset(stack)
        used.add(owner_in_use(owners[name], stack))
    starts = (entry.layer for execution in executions for entry in execution.tape if isinstance(entry, Start))
    order = {path: number for number, path in enumerate(dict.fromkeys(p for p in starts if p in used))}
    weights_of_layer: dict[str, list[Weight]] = {path: [] for path in order}
    for weight in weights:
        if used_owners := [path for path in weight.owners if path in order]:
            weights_of_layer[min(used_owners, key=order.__getitem__)].append(weight)
    return [_used_layer(path, own, executing) for path, own in weights_of_layer.items() if own]


def owner_in_use(owners: tuple[str, ...], stack: Stack) -> str:
    """The layer for which a weight was read: the innermost owner that is executing, else the first owner."""
    return next((path for path in reversed(stack) if path in owners), owners[0])


def _used_layer(path: str, weights: list[Weight], executing: dict[str, frozenset[str]]) -> UsedLayer:
    return UsedLayer(
        path=path,
        parameters=weighed(weight for weight in weights if not weight.is_buffer),
        buffers=weighed(weight for weight in weights if weight.is_buffer),
        executing=reduce(
            frozenset.intersection, (executing[weight.name] for weight in weights if weight.name in executing)
        ),
    )


def listed_layers(
    layers: Iterable[UsedLayer], groups: Sequence[WeightGroup], shells: Mapping[str, tuple[str, ...]]
) -> tuple[Layer, ...]:
    """The layers as the profile lists them, each with its group, block and shell."""
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
    """A module's path and the paths of all modules around it except the component: `a.b`, `a`."""
    while path:
        yield path
        path = path.rpartition(".")[0]


# ---------------------------------------------------------------------------------------------------
# Groups


def weight_groups(
    layers: Sequence[UsedLayer],
    unused: Collection[str],
    executions: Sequence[Execution],
    units: frozenset[str] = frozenset(),
    fineness: int = 1,
) -> tuple[WeightGroup, ...]:
    """The root group and the others, in the order in which they first execute; none holds an unused layer.

    Of what is compiled (`units`) each module is in one group with all in it, or in the root: hooks do not run inside.
    """
    used_bytes = sum(layer.weight_bytes for layer in layers)
    cap = min(used_bytes // LEAST_NUM_GROUPS, LARGEST_GROUP_BYTES) // fineness
    methods: dict[str, frozenset[str]] = {}
    for execution in executions:
        for path in execution.usage.entered:
            methods[path] = methods.get(path, frozenset()) | {execution.method}
    split = {path for layer in unused for path in ("", layer, *ancestry(layer))}
    whole = {path: called_by for path, called_by in methods.items() if path not in split}
    movable = [] if "" in units else list(movable_modules("", layers, whole, cap=cap, units=units))
    order = {path: number for number, path in enumerate(methods)}
    movable.sort(key=lambda module: order[module.path])
    root_bytes = used_bytes - sum(module.weight_bytes for module in movable)
    moved = {module.path for module in movable}
    rest = tuple(layer.path for layer in layers if not moved & {"", *ancestry(layer.path)})
    root = WeightGroup(name="root", weight_bytes=root_bytes, modules=rest)
    return root, *join_modules(movable, cap=cap)


def movable_modules(
    path: str,
    layers: Sequence[UsedLayer],
    methods: dict[str, frozenset[str]],
    *,
    cap: int,
    units: frozenset[str] = frozenset(),
) -> Iterator[MovableModule]:
    """Split a module top-down until each piece is small enough, never below a leaf.

    `layers` are those in the module at `path`. The others go to the root group: a split module's own weights, and
    weights that were used while the module that holds them was not executing.
    """
    weight_bytes = sum(layer.weight_bytes for layer in layers)
    inner = [layer for layer in layers if layer.path != path]
    inner_bytes = sum(layer.weight_bytes for layer in inner)
    is_movable = path in methods and all(path in layer.executing for layer in layers)
    # Where the module's own weights are most of it (a table of positions), splitting would free little.
    is_whole = weight_bytes <= cap or inner_bytes < weight_bytes / 2 or path in units
    if is_movable and is_whole:
        yield MovableModule(path=path, weight_bytes=weight_bytes, methods=methods[path])
    if path in units or (is_movable and is_whole):
        return
    depth = path.count(".") + 2 if path else 1
    by_child: dict[str, list[UsedLayer]] = {}
    for layer in inner:
        by_child.setdefault(".".join(layer.path.split(".")[:depth]), []).append(layer)
    for child, members in by_child.items():
        yield from movable_modules(child, members, methods, cap=cap, units=units)


def join_modules(modules: Sequence[MovableModule], *, cap: int) -> Iterator[WeightGroup]:
    """Join neighbours that the same methods execute, up to `cap` bytes a group."""
    for _, run in groupby(modules, key=lambda module: module.methods):
        neighbours = list(run)
        sizes = [module.weight_bytes for module in neighbours]
        for start, stop in even_partition(sizes, cap=cap):
            paths = tuple(module.path for module in neighbours[start:stop])
            name = paths[0] if len(paths) == 1 else f"{paths[0]} … {paths[-1]}"
            yield WeightGroup(name=name, weight_bytes=sum(sizes[start:stop]), modules=paths)


def even_partition(sizes: Sequence[int], *, cap: int) -> list[tuple[int, int]]:
    """Cut a sequence into (start, stop) runs that add up to at most `cap` each and are as alike as possible.

    The sum of squared free space is least, as when a typesetter breaks lines: few runs, none nearly empty. A size
    above `cap` is a run of its own, with little beside it.
    """
    best: list[tuple[float, int]] = [(0.0, 0)]
    for stop in range(1, len(sizes) + 1):
        total, largest, choice = 0, 0, (inf, 0)
        for start in range(stop - 1, -1, -1):
            total, largest = total + sizes[start], max(largest, sizes[start])
            if total - max(0, largest - cap) > cap * (1 + OVERSIZE_EXTRA_FRACTION if largest > cap else 1):
                break
            choice = min(choice, (best[start][0] + float(max(0, cap - total)) ** 2, start))
        best.append(choice)
    runs, stop = [], len(sizes)
    while stop:
        start = best[stop][1]
        runs.append((start, stop))
        stop = start
    return runs[::-1]
