"""From the tapes of a recorded call to what a trace keeps of them: segments, allocations, work by its number."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from vramtune.profiler.execution import Execution
from vramtune.profiler.record import Recording
from vramtune.profiler.tracker import Allocation, End, Entry
from vramtune.schema import Component, Kernels, TracedCall, TracedRun, TracedSegment, Turn, Work


@dataclass(slots=True)
class WorkList:
    """Each different piece of work once, in the order in which it first came."""

    numbers: dict[Work, int] = field(default_factory=dict)

    def number(self, work: Work) -> int:
        """Its place in the list."""
        return self.numbers.setdefault(work, len(self.numbers))


@dataclass(slots=True)
class Stretch:
    """Work and peak of a part of a tape, written down while it is read."""

    work: list[int] = field(default_factory=list)
    peak_bytes: int = 0


def traced_call(
    execution: Execution, component: Component, work: WorkList, permitted: dict[str, int], kernels: Kernels
) -> TracedCall:
    """What a trace keeps of one call, whose component has these layers; `permitted` are its calls under permissions."""
    tape = list(with_images(execution.tape, kernels))
    return TracedCall(
        component=execution.component,
        method=execution.method,
        segments=tuple(_segments(tape, component, work)),
        events=tuple(_events(entry for entry in tape if isinstance(entry, Allocation))),
        images=_images(tape),
        depends_on_card=execution.usage.depends_on_card,
        permitted=permitted,
    )


def with_images(tape: Iterable[Entry], kernels: Kernels) -> Iterator[Entry]:
    """With what cuDNN's convolutions hold while they run: their images in the order that its kernels want."""
    for number, entry in enumerate(tape):
        yield entry
        if isinstance(entry, Work) and entry.layout_in_bytes and kernels == "cuda":
            num_bytes = entry.layout_in_bytes + entry.layout_out_bytes
            yield Allocation(-number - 2, num_bytes)
            yield Allocation(-number - 2, -num_bytes)


def _images(tape: Sequence[Entry]) -> dict[int, int]:
    """By number of an allocation, which of its bytes cuDNN does without where memory is short: those of the result."""
    found, num_begun = {}, 0
    for before, entry in pairwise([None, *tape]):
        if isinstance(entry, Allocation) and entry.num_bytes > 0:
            num_begun += 1
            if isinstance(before, Work) and entry.key < 0 and before.layout_out_bytes:
                found[num_begun] = before.layout_out_bytes
    return found


def _events(allocations: Iterable[Allocation]) -> Iterator[int]:
    """Bytes of each that begins; of each that ends its age in allocations, below 0 (the last that began is 1)."""
    numbers: dict[int, int] = {}
    num_begun = 0
    for key, num_bytes in allocations:
        if num_bytes > 0:
            num_begun += 1
            numbers[key] = num_begun
            yield num_bytes
        else:
            yield numbers.pop(key) - num_begun - 1


def _segments(tape: Iterable[Entry], component: Component, work: WorkList) -> Iterator[TracedSegment]:
    """Layers, each with what happens in it and after it."""
    index = {layer.name: number for number, layer in enumerate(component.layers)}
    layer: int | None = None
    own, after = Stretch(), Stretch()
    now, live = own, 0  # what comes before the first layer goes to the first
    for entry in tape:
        if isinstance(entry, Work):
            now.work.append(work.number(entry))
        elif isinstance(entry, Allocation):
            live += entry.num_bytes
            now.peak_bytes = max(now.peak_bytes, live)
        elif isinstance(entry, End):
            if index.get(entry.layer) == layer and now is own:
                now = after = Stretch(peak_bytes=live)
        elif (begun := index.get(entry.layer)) is not None and (begun != layer or now is after):
            if layer is not None:
                yield _segment(layer, own, after)
                own, after = Stretch(peak_bytes=live), Stretch()
            layer, now = begun, own
    if layer is not None:
        yield _segment(layer, own, after)


def _segment(layer: int, own: Stretch, after: Stretch) -> TracedSegment:
    return TracedSegment(layer, tuple(own.work), own.peak_bytes, tuple(after.work), after.peak_bytes)


def traced_run(recording: Recording, calls: dict[Execution, int], work: WorkList) -> TracedRun:
    """What a trace keeps of the pipeline's call; `calls` are the numbers of the components'."""
    tape = recording.pipeline_tape
    bounds = [call.tape_position for call in recording.calls] + [len(tape)]
    lead, live = _pipeline_stretch(tape[: bounds[0]], 0, work)
    turns, peak_bytes = [], lead.peak_bytes
    for call, (start, stop) in zip(recording.calls, pairwise(bounds), strict=True):
        held_bytes = live
        stretch, live = _pipeline_stretch(tape[start:stop], live, work)
        peak_bytes = max(stretch.peak_bytes, peak_bytes)
        turns.append(Turn(calls[call.execution], held_bytes, peak_bytes, tuple(stretch.work)))
        peak_bytes = 0
    return TracedRun(lead_work=tuple(lead.work), turns=tuple(turns))


def _pipeline_stretch(tape: Iterable[Entry], live: int, work: WorkList) -> tuple[Stretch, int]:
    """Its work and peak, and live bytes at its end."""
    stretch = Stretch(peak_bytes=live)
    for entry in tape:
        if isinstance(entry, Allocation):
            live += entry.num_bytes
            stretch.peak_bytes = max(stretch.peak_bytes, live)
        elif isinstance(entry, Work):
            stretch.work.append(work.number(entry))
    return stretch, live
