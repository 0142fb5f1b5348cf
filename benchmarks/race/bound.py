"""Seconds that no contestant's denoiser can beat, from what is on the card besides weights at every moment of its call.

Whoever computes a layer has all of that layer's weights on the card, beside the activations that are alive then and what
else there is room for. From one moment to the same one in the denoiser's next call all of its weights are used, so what
the card has no room for at that moment is copied in between. Where the moment is a layer's end, its own weights fill
room without being of use before the next time, and what is copied for the layers in between is there before that next
time begins: so the copies and the layer's own kernels follow one another. That is what a slot costs, of a single
layer at the least. Which moment says most depends on room and link; all are tried, one at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple


class Layer(NamedTuple):
    """One layer of a denoiser's call, with all weights on the card."""

    weight_bytes: int
    begin_seconds: float
    """Kernels of the call until it begins."""
    end_seconds: float
    """The same until it has ended."""
    live_bytes: int
    """What is on the card besides weights at its end."""
    most_live_bytes: int
    """The most of that since the end of the layer before."""


class Stretch(NamedTuple):
    """What lies between two moments, so often in a pipeline's call."""

    times: int
    kernel_seconds: float
    copied_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoiser:
    """Its calls, which are alike."""

    num_calls: int
    kernel_seconds: float
    """Of one call."""
    begin_bytes: int
    """What is on the card besides weights as a call begins."""
    layers: tuple[Layer, ...]
    """In the order of a call."""

    @classmethod
    def of(cls, found: dict[str, Any]) -> "Denoiser":
        """As `calls.py` has found it."""
        return cls(**{**found, "layers": tuple(Layer(*layer) for layer in found["layers"])})

    @property
    def weight_bytes(self) -> int:
        """Of all layers."""
        return sum(layer.weight_bytes for layer in self.layers)

    def least_seconds(self, room_bytes: int, bytes_per_second: float) -> float:
        """From the begin of the first call to the end of the last one, with so much room for weights and activations."""
        return max(
            sum(s.times * max(s.kernel_seconds, s.copied_bytes / bytes_per_second) for s in stretches)
            for stretches in self._ways(room_bytes)
        )

    def least_copied_bytes(self, room_bytes: int) -> int:
        """In all calls."""
        return max(sum(s.times * s.copied_bytes for s in stretches) for stretches in self._ways(room_bytes))

    def _ways(self, room_bytes: int) -> Iterator[tuple[Stretch, ...]]:
        """The calls cut at one moment of each, for every moment: a layer's end, and when most was alive before that."""
        total_bytes = self.weight_bytes
        before_bytes, before_seconds = 0, 0.0
        for layer in self.layers:
            after_bytes = total_bytes - before_bytes - layer.weight_bytes
            after_seconds = self.kernel_seconds - layer.end_seconds
            first_bytes = max(0, before_bytes - room_bytes + self.begin_bytes)
            room = room_bytes - layer.live_bytes
            lasts_seconds = layer.end_seconds - layer.begin_seconds
            yield (
                Stretch(1, layer.begin_seconds, first_bytes),
                Stretch(self.num_calls, lasts_seconds, 0),
                Stretch(self.num_calls - 1, self.kernel_seconds - lasts_seconds, max(0, total_bytes - room)),
                Stretch(1, after_seconds, max(0, after_bytes - room + layer.weight_bytes)),
            )
            room = room_bytes - layer.most_live_bytes
            yield (
                Stretch(1, before_seconds, first_bytes),
                Stretch(self.num_calls - 1, self.kernel_seconds, max(0, total_bytes - room)),
                Stretch(1, after_seconds, max(0, after_bytes - room)),
            )
            before_bytes, before_seconds = before_bytes + layer.weight_bytes, layer.end_seconds
