"""What text and image encoders returned, kept for the next call with the same inputs: then they need not be copied or run.

An embedding is known by all inputs of the encoder's call, tensors by their bits, and by the settings under which PyTorch
computes. It is kept on the host, and given as new tensors each time: pipelines may write to them. Of the encoder's weights it
is known how often they were written to; to look at their bits would take longer than to run the encoder. So a write that
PyTorch does not count goes unnoticed: one into `parameter.data`, as PEFT's layers do when they are merged by hand.
"""

import hashlib
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_flatten

from vramtune.contract import has_adapters, is_encoder
from vramtune.offload.binding import BoundComponent
from vramtune.offload.groups import flat_bytes, num_writes
from vramtune.units import MIB

MOST_BYTES = 512 * MIB
"""Of all embeddings together; the one that was asked for longest ago goes first."""
PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)
"""Inputs that are what they print as."""

Key = tuple[str, str, str]
"""Component, method, and a hash of the inputs."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """What an encoder returned."""

    component: BoundComponent
    versions: tuple[int, ...]
    """Number of edits that were noticed, and of writes to each of its weights."""
    structure: bytes
    """All but the tensors, pickled."""
    tensors: list[tuple[torch.device, torch.Tensor]]
    """Where each one was, and its bits on the host."""

    @property
    def num_bytes(self) -> int:
        """What it takes of the host's memory."""
        return len(self.structure) + sum(tensor.nbytes for _, tensor in self.tensors)


class Embeddings:
    """Embeddings of a pipeline's encoders."""

    def __init__(self) -> None:
        self._by_key = OrderedDict[Key, Embedding]()

    @property
    def num_bytes(self) -> int:
        """What all of them take of the host's memory."""
        return sum(embedding.num_bytes for embedding in self._by_key.values())

    def known_or_new(self, component: BoundComponent, method: str, inputs: Any, run: Callable[[], Any]) -> Any:
        """What a component's method returns for these inputs: as it is kept, or by running it, and kept then."""
        key = self._key(component, method, inputs)
        if key is None:
            return run()
        if (known := self._known(component, key)) is not None:
            return known
        result = run()
        self._keep(component, key, result)
        return result

    def _key(self, component: BoundComponent, method: str, inputs: Any) -> Key | None:
        """By what an embedding is known; None where it is not kept.

        Kept are those of encoders in evaluation that are as they were planned: with nothing that came in, such as adapters,
        whose strength is a plain number somewhere. Of an encoder that was edited since, all are forgotten.
        """
        if not is_encoder(component.module):
            return None
        if _versions(component) is None or component.module.training:
            self._forget(component.name)
            return None
        inputs_hash = _hash_of(inputs)
        return None if inputs_hash is None else (component.name, method, inputs_hash)

    def _known(self, component: BoundComponent, key: Key) -> Any:
        """The embedding as new tensors; None where there is none, or the encoder's weights were written to since."""
        embedding = self._by_key.get(key)
        if embedding is None:
            return None
        if embedding.component is not component or embedding.versions != _versions(component):
            self._forget(component.name)
            return None
        self._by_key.move_to_end(key)
        return _Reader(embedding).load()

    def _keep(self, component: BoundComponent, key: Key, result: Any) -> None:
        """Keep an embedding, if it can be kept at all and is not too large; older ones go for it."""
        versions, writer = _versions(component), _Writer()
        if versions is None:
            return
        try:
            writer.dump(result)
        except (pickle.PicklingError, TypeError, AttributeError):  # too large, or with something that cannot be copied
            return
        embedding = Embedding(component, versions, writer.stream.getvalue(), writer.tensors)
        self._by_key[key] = embedding
        while self.num_bytes > MOST_BYTES:
            self._by_key.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._by_key.clear()

    def _forget(self, component: str) -> None:
        for key in [key for key in self._by_key if key[0] == component]:
            del self._by_key[key]


def _versions(component: BoundComponent) -> tuple[int, ...] | None:
    """Number of edits that were noticed, and of writes to each weight; None for a component that is not as it was planned."""
    if component.came_in or component.joined or component.is_rebuilt or has_adapters(component.module):
        return None
    if any(group.is_replaced or group.is_edited for group in component.groups):
        return None
    return component.num_edits, *(num_writes(held.tensor) for group in component.groups for held in group.held)


def _hash_of(inputs: Any) -> str | None:
    """A hash of the inputs, and of the settings under which PyTorch computes; None where they hold more than plain values."""
    leaves, structure = tree_flatten(inputs)
    found = hashlib.sha256(repr((str(structure), _settings())).encode())
    for leaf in leaves:
        if type(leaf) is torch.Tensor:
            found.update(repr((leaf.dtype, tuple(leaf.shape), leaf.stride(), leaf.device)).encode())
            found.update(flat_bytes(leaf.cpu().contiguous()).numpy().tobytes())
        elif isinstance(leaf, PLAIN):
            found.update(f"{type(leaf)} {leaf!r};".encode())
        else:
            return None
    return found.hexdigest()


def _settings() -> tuple[object, ...]:
    device_type = torch.accelerator.current_accelerator()
    kind = "cpu" if device_type is None else device_type.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return (
        autocast,
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
    )


class _Writer(pickle.Pickler):
    """Pickles an embedding, and takes the tensors in it to the host."""

    def __init__(self) -> None:
        self.stream = io.BytesIO()
        super().__init__(self.stream)
        self.tensors: list[tuple[torch.device, torch.Tensor]] = []
        self._num_bytes = 0
        self._seen: dict[int, tuple[int, torch.Tensor]] = {}
        """Numbers by the tensors' ids, and the tensors themselves, so that no other one gets such an id."""

    def persistent_id(self, value: Any) -> int | None:
        """A tensor's number; the same one for the same tensor."""
        if not isinstance(value, torch.Tensor):
            return None
        if type(value) is not torch.Tensor:
            raise pickle.PicklingError(f"a {type(value).__name__} among an encoder's outputs")
        if id(value) not in self._seen:
            self._num_bytes += value.nbytes
            if self._num_bytes > MOST_BYTES:  # before it takes as much of the host
                raise pickle.PicklingError(f"more than {MOST_BYTES} bytes of an encoder's outputs")
            self._seen[id(value)] = len(self.tensors), value
            self.tensors.append((value.device, value.detach().to("cpu", copy=True)))
        return self._seen[id(value)][0]


class _Reader(pickle.Unpickler):
    """The embedding again, with new tensors where they were."""

    def __init__(self, embedding: Embedding) -> None:
        super().__init__(io.BytesIO(embedding.structure))
        self._embedding = embedding
        self._made: dict[int, torch.Tensor] = {}

    def persistent_load(self, number: Any) -> torch.Tensor:
        """The tensor of that number."""
        if number not in self._made:
            device, tensor = self._embedding.tensors[number]
            self._made[number] = tensor.to(device, copy=True)
        return self._made[number]
