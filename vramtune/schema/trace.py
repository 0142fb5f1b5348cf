"""What a pipeline's call does, whichever card it runs on: the nouns of a `Trace`. A price makes a `Profile` of it.

Work is listed once, and named by its place in that list: a call of ten thousand operations has a hundred different ones.
"""

import lzma
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import msgspec
from msgspec import Meta

from vramtune.errors import FileError
from vramtune.schema.figures import Bytes, Index
from vramtune.schema.files import read_file, write_file
from vramtune.schema.loops import LEAST_REPEATS, Loop, find_loops
from vramtune.schema.machine import Kernels
from vramtune.schema.profile import NO_SMALL_TENSORS, Component, InArenas, SmallTensors, Workload, call_name
from vramtune.uncollected import uncollected

Kind = Literal[
    "matmul",
    "convolution",
    "attention",
    "narrow_attention",
    "wide_attention",
    "masked_attention",
    "pointwise",
    "strided",
    "group_norm",
]
Flops = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Event = Annotated[int, Meta(ge=-(2**31), le=2**60)]
ALWAYS_FOLLOWED = ("vae_tiling",)
"""Permissions under which a call is followed whether they are given or not: what they would save is worth knowing, and a VAE
is followed soon. To follow a denoiser once more takes half as long again as the rest."""
TRACE_VERSION = 8
"""8: what calls take under each limit. Of traces alone: those that come with the package take long to make, and plans and
profiles change without them."""
MOST_BYTES = 2**28
"""Of a trace in memory: what is read may claim to be any size. The largest of the catalog's takes 4 MiB."""


class Work(NamedTuple):
    """The arithmetic and traffic of one operation: a multiply-add is two FLOPs, bytes are read or written."""

    kind: Kind
    dtype: str
    flops: Flops
    num_bytes: Bytes
    num_kernels: Index = 1
    num_elements: Bytes = 0
    """Elements that go through the multiprocessors one by one, in kinds that have such a rate."""
    num_blocks: Index = 0
    """Blocks of threads among which they are divided; 0 is more than there are multiprocessors."""
    layout_in_bytes: Bytes = 0
    """Images that a convolution's kernel wants in another order (channels last)."""
    layout_out_bytes: Bytes = 0
    """Its result in that order."""


class TracedSegment(NamedTuple):
    """What a `Segment` is priced from: a layer's own `forward`, then what follows it up to the next layer."""

    layer: Index
    """Index into the component's layers, as they are in this call."""
    layer_work: tuple[Index, ...]
    """Indices into the trace's work, in the order of execution."""
    layer_activation_bytes: Bytes
    """Highest allocated bytes (no weights) during it."""
    after_work: tuple[Index, ...]
    after_activation_bytes: Bytes


class Reserved(NamedTuple):
    """Bytes that PyTorch's caching allocator reserves for a call beyond a library's workspace that it holds too."""

    least_bytes: Bytes
    """Under the lowest limit that the call gets through."""
    cached_bytes: tuple[Bytes, ...] = ()
    """What it reserves beyond that, ascending: under a limit the largest of these that it allows."""
    small_tensors: SmallTensors = NO_SMALL_TENSORS
    peak_in_arenas: InArenas | None = None
    """What is reserved for a call that is repeated, in arenas, where nothing limits it; None where that is no less."""
    least_in_arenas: InArenas | None = None
    """Under the lowest limit of a call, in arenas."""

    @property
    def peak_bytes(self) -> int:
        """Where nothing limits it."""
        return self.least_bytes + max(self.cached_bytes, default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedCall:
    """One call of a component's method, unlike all others."""

    component: str
    method: str
    segments: tuple[TracedSegment, ...]
    events: tuple[Event, ...]
    """Allocations in order: `n` takes n bytes, `-k` ends the k-th youngest of all so far (the last that began is 1), so that
    what is repeated is written alike."""
    images: dict[Index, Bytes] = field(default_factory=dict)
    """By number of an allocation, what it takes less where memory is short: cuDNN's copy of a convolution's result."""
    depends_on_card: bool = False
    """Whether a library chooses kernels by the card: the events are the most that it allocates, and may be others."""
    permitted: dict[str, Index] = field(default_factory=dict)
    """The same call under permissions: indices into the trace's calls, by the permission that changes something of it."""
    reserved: dict[Bytes, Reserved] = field(default_factory=dict)
    """What the allocator makes of the events beside a workspace of so many bytes, as far as that was computed."""

    def allocations(self) -> Iterator[tuple[int, int]]:
        """The events as (number, bytes) of an allocation and (number, -bytes) of its end."""
        sizes: list[int] = []
        for event in self.events:
            if event > 0:
                sizes.append(event)
                yield len(sizes), sizes[-1]
            else:
                number = len(sizes) + event + 1
                yield number, -sizes[number - 1]


class Turn(NamedTuple):
    """A call's place in the pipeline's, with what the pipeline itself holds and does around it."""

    call: Index
    """Index into the trace's calls."""
    held_bytes: Bytes
    """Live bytes of the pipeline while the component runs."""
    peak_bytes: Bytes
    """The pipeline's highest live bytes from the call to the next one; of the first call, from the beginning."""
    work: tuple[Index, ...]
    """The pipeline's own from the call to the next one."""


class GrowingWork(NamedTuple):
    """A piece of the pipeline's own work, outside of its steps, of which there is more the more steps there are."""

    turn: Index
    """Index of the turn after which it is done."""
    position: Index
    """In that turn's work."""
    num_bytes: Index
    """By step."""
    num_elements: Index


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedRun:
    """One call of the pipeline, from its first line to its last."""

    num_steps: Index | None = None
    """Denoising steps that it was asked for; None where the pipeline's own number of them was."""
    lead_work: tuple[Index, ...]
    """What the pipeline computes before its first component runs."""
    turns: tuple[Turn, ...]

    growing: tuple[GrowingWork, ...] = ()

    @property
    def longest_loop(self) -> Loop:
        """Of its turns: the denoising steps, where there are any."""
        return max(find_loops(self.turns), key=lambda loop: loop.num_iterations)

    def with_steps(self, num_steps: int) -> Self:
        """The run with so many steps, if more or fewer of them change nothing but how often its longest loop goes round;
        work that grows is as it was."""
        loop = self.longest_loop
        more = num_steps - (self.num_steps or 0)
        if self.num_steps is None or loop.num_iterations + min(more, 0) < LEAST_REPEATS:
            return self
        one = self.turns[loop.stop - loop.period : loop.stop]
        before = self.turns[: loop.stop + min(more, 0) * loop.period]
        turns = (*before, *one * more, *self.turns[loop.stop :])
        moved = more * loop.period
        growing = tuple(g._replace(turn=g.turn + moved) if g.turn >= loop.stop else g for g in self.growing)
        return replace(self, num_steps=num_steps, turns=turns, growing=growing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What one call of a pipeline does on any card that runs these kernels; only its price differs.

    It has no seconds. Its bytes are exact, whatever the card: weights, and each allocation in its order.
    """

    pipeline_class: str
    workload: Workload
    kernels: Kernels = "cuda"
    """Whose kernels it was followed for: they decide what is allocated."""
    components: tuple[Component, ...]
    in_float8: tuple[Component, ...] = ()
    """Those that can be stored in float8, as they would be then: other weights, other layers."""
    permissions: tuple[str, ...] = ALWAYS_FOLLOWED
    """Those under which the call was followed too."""
    offload_sequence: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    work: tuple[Work, ...]
    """Each different piece of work, once."""
    calls: tuple[TracedCall, ...]
    """Each different call of a component's method, once."""
    runs: tuple[TracedRun, ...]
    """The pipeline's call; or two of fewer steps, from which it is drawn out."""
    num_steps: Index | None = None
    """Steps of the call that is drawn out of two."""
    exact_steps: tuple[Index, ...] = ()
    """Numbers of denoising steps for which the call is known to be this one with more or fewer iterations."""
    versions: dict[str, str] = field(default_factory=dict)
    """Under which it was made."""

    def __repr__(self) -> str:
        """One line."""
        called = dict.fromkeys(self._name(turn.call) for turn in self.runs[0].turns)
        return f"<Trace of {self.pipeline_class}, for {self.kernels} kernels: {', '.join(called)}>"

    def _name(self, call: int) -> str:
        return call_name(self.calls[call].component, self.calls[call].method)

    def check(self) -> None:
        """Raise a `ValueError` for parts that do not belong together."""
        if len(self.runs) != (1 if self.num_steps is None else 2) or not all(run.turns for run in self.runs):
            raise ValueError("no call of a pipeline, or two that are none of fewer steps")
        calls, work = range(len(self.calls)), range(len(self.work))
        turns = [turn for run in self.runs for turn in run.turns]
        named = [*(turn.call for turn in turns), *(index for call in self.calls for index in call.permitted.values())]
        done = [*(run.lead_work for run in self.runs), *(turn.work for turn in turns)]
        for call in self.calls:
            done += [each for segment in call.segments for each in (segment.layer_work, segment.after_work)]
            num_layers = self._num_layers(call)
            if any(segment.layer >= num_layers for segment in call.segments):
                raise ValueError(f"{call.component}.{call.method}: a segment names no layer")
            _check_events(call)
        for run in self.runs:
            if any(g.turn >= len(run.turns) or g.position >= len(run.turns[g.turn].work) for g in run.growing):
                raise ValueError("work that grows and is not there")
        if any(index not in calls for index in named) or any(each and max(each) not in work for each in done):
            raise ValueError("a call or a piece of work that is not listed")

    def _num_layers(self, call: TracedCall) -> int:
        """The most layers that a call's component has, as it is or in float8."""
        of_name = [c for c in (*self.components, *self.in_float8) if c.name == call.component]
        return max((len(component.layers) for component in of_name), default=0)

    def with_steps(self, num_steps: int) -> Self:
        """The trace of the same call with so many steps, of those in `exact_steps`."""
        before, run = self.runs[0], self.runs[0].with_steps(num_steps)
        if num_steps not in self.exact_steps or run.num_steps != num_steps:
            raise ValueError(f"with {num_steps} steps it is another call")
        more, work = num_steps - (before.num_steps or 0), list(self.work)
        turns = list(run.turns)
        for turn, position, num_bytes, num_elements in run.growing:
            numbers = list(turns[turn].work)
            old = work[numbers[position]]
            new = old._replace(
                num_bytes=old.num_bytes + more * num_bytes, num_elements=old.num_elements + more * num_elements
            )
            numbers[position] = len(work)
            work.append(new)
            turns[turn] = turns[turn]._replace(work=tuple(numbers))
        return replace(
            self,
            work=tuple(work),
            runs=(replace(run, turns=tuple(turns)),),
            workload=replace(self.workload, call_kwargs=self.workload.call_kwargs | {"num_inference_steps": num_steps}),
        )

    def save(self, path: str | Path) -> None:
        """Write it to a file; raises a `FileError` that names the file where that cannot be done."""
        write_file(path, self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; raises a `FileError` that names the file if it is anything else."""
        try:
            return cls.from_bytes(read_file(path))
        except FileError as error:
            raise FileError(f"Cannot load {str(path)!r}: {error}") from error

    def to_bytes(self) -> bytes:
        """MessagePack, compressed: a tape of 400,000 events takes 100 KB."""
        envelope = {"kind": "Trace", "schema_version": TRACE_VERSION, "body": self}
        return lzma.compress(msgspec.msgpack.encode(envelope))

    @classmethod
    def from_bytes(cls, content: bytes, *, is_ours: bool = False) -> Self:
        """What `to_bytes` wrote; a `FileError` says what else it is. What came with the package is not checked again."""
        try:
            unpacked = lzma.LZMADecompressor().decompress(content, max_length=MOST_BYTES)
            envelope = msgspec.msgpack.decode(unpacked, type=dict[str, msgspec.Raw])
            written = msgspec.msgpack.decode(envelope["schema_version"], type=int)
        except (lzma.LZMAError, msgspec.MsgspecError, KeyError, EOFError) as error:
            raise FileError(f"Expected a vramtune Trace; this is no vramtune file: {error}.") from error
        if written != TRACE_VERSION:
            raise FileError(
                f"This Trace has version {written}; this vramtune reads version {TRACE_VERSION}. Make a new one."
            )
        try:
            with uncollected():
                trace = msgspec.msgpack.decode(envelope["body"], type=cls)
            if not is_ours:
                trace.check()
        except (msgspec.MsgspecError, ValueError, KeyError) as error:
            raise FileError(f"This Trace is damaged: {error}.") from error
        return trace


def _check_events(call: TracedCall) -> None:
    """Each end is that of an allocation before it, which had none."""
    num_begun, ended = 0, set[int]()
    for event in call.events:
        if event > 0:
            num_begun += 1
        elif not 0 < -event <= num_begun or num_begun + event in ended:
            raise ValueError(f"{call.component}.{call.method}: what was never allocated is freed")
        else:
            ended.add(num_begun + event)
