"""Which weights are in files and not in the host's memory: those that are mapped, and those that are not loaded yet."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from vramtune.contract import Pipeline, modules_of
from vramtune.layout import round_up
from vramtune.mapped_files import MappedFiles
from vramtune.plain_tensors import KIND, plain_tensors, value_of
from vramtune.schema import Component, Profile, WeightGroup


def with_files(profile: Profile, pipe: Pipeline) -> Profile:
    """The profile of a pipeline, told what of each component and group lies in files."""
    modules, mapped = modules_of(pipe), MappedFiles()
    components = (_with_files(c, modules[c.name], mapped) if c.name in modules else c for c in profile.components)
    return replace(profile, components=tuple(components))


def _with_files(component: Component, module: nn.Module, mapped: MappedFiles) -> Component:
    groups, num_bytes = _groups_with_files(component.groups, module, mapped)
    finer_groups, _ = _groups_with_files(component.finer_groups, module, mapped)
    return replace(component, groups=groups, finer_groups=finer_groups, file_bytes=num_bytes)


def _groups_with_files(
    groups: tuple[WeightGroup, ...], module: nn.Module, mapped: MappedFiles
) -> tuple[tuple[WeightGroup, ...], int]:
    """The groups of a module, the root first, and what all of it has in files."""
    paths, taken = dict(module.named_modules(remove_duplicate=False)), set[torch.Tensor]()

    def group_bytes(group: WeightGroup, *, is_root: bool) -> int:
        outer = (paths[path] for path in group.modules if path in paths)
        owners = (owner for each in outer for owner in ((each,) if is_root else each.modules()))
        return sum(_bytes_in_files(owner, mapped, taken) for owner in owners)

    inner = [replace(group, file_bytes=group_bytes(group, is_root=False)) for group in groups[1:]]
    roots = [replace(group, file_bytes=group_bytes(group, is_root=True)) for group in groups[:1]]
    unused_bytes = sum(_bytes_in_files(owner, mapped, taken) for owner in module.modules())
    counted = (*roots, *inner)
    return counted, unused_bytes + sum(group.file_bytes for group in counted)


def _bytes_in_files(owner: nn.Module, mapped: MappedFiles, taken: set[torch.Tensor]) -> int:
    """Of what a module owns itself, and nobody has counted."""
    return sum(round_up(tensor.nbytes) for tensor in _tensors_in_files(owner, mapped) if not _is_known(tensor, taken))


def _is_known(tensor: torch.Tensor, taken: set[torch.Tensor]) -> bool:
    if tensor in taken:
        return True
    taken.add(tensor)
    return False


def _tensors_in_files(owner: nn.Module, mapped: MappedFiles) -> Iterator[torch.Tensor]:
    for weight in (*owner._parameters.values(), *owner._buffers.values()):
        if weight is None:
            continue
        plain = [part.tensor for part in plain_tensors(weight, owner)]
        for tensor in plain:
            # what stands for a quantized weight is made when it is loaded
            is_to_be_loaded = tensor.is_meta and len(plain) == 1 and not hasattr(weight, KIND)
            if is_to_be_loaded or mapped.file_of(value_of(tensor)) is not None:
                yield tensor
