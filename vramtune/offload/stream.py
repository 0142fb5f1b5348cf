"""Copies beside compute: one copy stream, a ring of bytes per streaming placement, and the order of copies.

Every copy waits for the computation whose bytes it overwrites, every computation for the copy it reads, both by
events on the device: the host never waits. Copies are asked for in the order in which a stage needs them, as far
ahead as the ring has room, but little of the next iteration before it begins; a visit out of that order is copied on
the spot, and the order is taken up again from there.
"""

import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from vramtune.layout import next_place
from vramtune.offload.binding import BoundComponent
from vramtune.offload.groups import Group, views
from vramtune.offload.inputs import Brought
from vramtune.offload.meter import Meter
from vramtune.offload.pieces import flats, new_piece
from vramtune.offload.staging import Staging
from vramtune.tables import Tables

logger = logging.getLogger(__name__)

Ready = torch.Event | Future[torch.Event]
"""Event of the end of a copy; of one that is staged, once that was asked of the device."""
ENDLESS = 1 << 62
"""Number of visits of a stage that has more iterations than planned."""


class Lane:
    """A copy stream beside the stream on which the pipeline computes."""

    def __init__(self, device: torch.device, meter: Meter, staging_slot_bytes: int) -> None:
        self.device, self._meter = device, meter
        self._staging_slot_bytes = staging_slot_bytes
        self._staging: Staging | None = None
        self._copies = torch.Stream(device=device)
        self._compute = torch.accelerator.current_stream(device)
        self._free_events: list[torch.Event] = []
        """Events to record again: creating one costs more than recording it."""

    @property
    def is_staging(self) -> bool:
        """Whether there is a second copy stream, which does not follow what the first one waits for."""
        return self._staging is not None

    def follow_compute(self) -> None:
        """Hold back later copies until all that the compute stream has been given so far is done.

        Memory that was just allocated may have belonged to a tensor whose kernels are still running.
        """
        self._leave_copies()
        self._compute = torch.accelerator.current_stream(self.device)
        self._copies.wait_stream(self._compute)
        if self._staging is not None:
            self._staging.stream.wait_stream(self._compute)

    def _leave_copies(self) -> None:
        """Make the compute stream the current one again where an interrupted copy left its own."""
        if torch.accelerator.current_stream(self.device) == self._copies:
            torch.accelerator.set_stream(self._compute)

    def precede_compute(self) -> None:
        """Hold back later computation until all copies so far are done; needed before their memory is freed."""
        self._compute.wait_stream(self._copies)
        if self._staging is not None:
            self._staging.drain()
            self._compute.wait_stream(self._staging.stream)

    def finish(self) -> None:
        """Make the host wait for every copy: from then on the masters may be written."""
        self._copies.synchronize()
        if self._staging is not None:
            self._staging.drain()
            self._staging.stream.synchronize()

    def end(self) -> None:
        """Give the slots back through which weights were staged, once all copies are done."""
        self._leave_copies()
        self.finish()
        if self._staging is not None:
            self._staging.end()
            self._staging = None

    def copy(self, group: Group, target: torch.Tensor, after: torch.Event | None) -> Ready:
        """Copy a group's master on a copy stream, after an event of the compute stream; returns the event of its end."""
        if group.is_in_place:
            return self._stage(group, target, after)
        if after is not None:
            self._copies.wait_event(after)
            if not self.is_staging:
                self._free_events.append(after)
        with self._copies:
            target.copy_(group.flat, non_blocking=True)
        self._meter.copied(group.num_bytes)
        return self._record(self._copies)

    def begin_staging(self) -> Staging:
        """Have slots through which weights in ordinary memory are staged, from now on."""
        if self._staging is None:
            self._staging = Staging(self.device, self._staging_slot_bytes)
            self._staging.stream.wait_stream(self._compute)
        return self._staging

    def _stage(self, group: Group, target: torch.Tensor, after: torch.Event | None) -> Ready:
        self._meter.copied(group.num_bytes)
        return self.begin_staging().copy(group, target, after=after, ready=self._new_event())

    def wait(self, ready: Ready) -> None:
        """Hold back later computation until that copy is done; the host waits until a staged one is on its way."""
        if isinstance(ready, Future):
            ready = ready.result()
        before, after = (torch.Event(device=self.device, enable_timing=True) for _ in range(2))
        before.record(self._compute)
        self._compute.wait_event(ready)
        after.record(self._compute)
        self._free_events.append(ready)
        self._meter.waited(before, after)

    def passed(self) -> torch.Event:
        """An event at the present end of the compute stream."""
        return self._record(self._compute)

    def _record(self, stream: torch.Stream) -> torch.Event:
        event = self._new_event()
        event.record(stream)
        return event

    def _new_event(self) -> torch.Event:
        return self._free_events.pop() if self._free_events else torch.Event(device=self.device)


@dataclass(slots=True, eq=False)
class Copy:
    """A kept group's copy on the device, from the moment its memory is taken."""

    flat: torch.Tensor
    tensors: list[torch.Tensor]
    """Views of `flat`, one for each tensor of the group."""
    ready: Ready | None = None
    """Event of the end of the copy; None before it is asked for, and once the compute stream waits for it."""
    has_arrived: bool = False
    """Whether the compute stream may read it."""

    @property
    def is_absent(self) -> bool:
        """Whether the copy was not asked for yet."""
        return self.ready is None and not self.has_arrived


def allocate(groups: list[Group], device: torch.device) -> dict[Group, Copy]:
    """Copies of these groups, still empty, in one piece of device memory."""
    return {group: Copy(flat, views(flat, 0, group.extents)) for group, flat in flats(groups, device)}


@dataclass(slots=True, eq=False)
class Place:
    """A group's copy in a ring, from the moment it is asked for until it is overwritten."""

    group: Group
    start: int
    number: int
    """Number of the visit that the copy is for, over all iterations of the stage."""
    ready: Ready
    """Event of the end of the copy."""
    left: torch.Event | None = None
    """Event of the end of the computation with it."""
    is_wanted: bool = True
    """Whether a computation with it is still to come or to end."""


class Ring:
    """A flat device buffer that a placement's streamed groups pass through, first in, first out.

    `vramtune.layout` says where the places are, here and in the planner.
    """

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self.num_bytes = num_bytes
        self.waiting: deque[Place] = deque()
        """Places whose copies were asked for and have not been computed with."""
        self._flat = new_piece(num_bytes, device)
        self._head = 0
        self._live: deque[Place] = deque()
        self._left: torch.Event | None = None
        """Event of the end of the last computation whose place was overwritten, perhaps in part."""
        self._copies: dict[tuple[Group, int], tuple[torch.Tensor, list[torch.Tensor]]] = {}

    def has_room(self, group: Group) -> bool:
        """Whether a group's next place overwrites nothing that is still wanted."""
        overwritten = self._start(group) + group.num_bytes - self.num_bytes
        return not any(place.is_wanted for place in self._live if place.start < overwritten)

    def ask(self, lane: Lane, group: Group, number: int) -> None:
        """Copy a group into its next place, for which there must be room."""
        start = self._start(group)
        self._head = start + group.num_bytes
        after: torch.Event | None = None
        while self._live and self._live[0].start < self._head - self.num_bytes:
            after = self._live.popleft().left or after
        self._left = after or self._left
        if lane.is_staging:
            after = self._left
        target, _ = self.copy_at(group, start)
        place = Place(group, start, number, lane.copy(group, target, after))
        self._live.append(place)
        self.waiting.append(place)

    def copy_at(self, group: Group, start: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """A group's bytes at a start, flat and as tensors."""
        start %= self.num_bytes
        if (group, start) not in self._copies:
            flat = self._flat[start : start + group.num_bytes]
            self._copies[group, start] = flat, views(self._flat, start, group.extents)
        return self._copies[group, start]

    def next_waiting(self, group: Group) -> Place | None:
        """The group's place, if its copy was asked for; copies that were asked for earlier are passed over."""
        if not any(place.group is group for place in self.waiting):
            return None
        while (place := self.waiting.popleft()).group is not group:
            place.is_wanted = False
        return place

    def forget_waiting(self) -> None:
        """Give up the copies that nothing has computed with."""
        for place in self.waiting:
            place.is_wanted = False
        self.waiting.clear()

    def _start(self, group: Group) -> int:
        return next_place(self._head, group.num_bytes, self.num_bytes)


@dataclass(slots=True, eq=False)
class Passage:
    """One placement while it runs in a stage."""

    ring: Ring | None
    """Ring of its streamed groups, or None where none is streamed."""
    current: Group | None = None
    """Group that computes now."""
    place: Place | None = None
    """Place of the current group, if that is streamed."""


class Traffic:
    """The copies of one stage, from its start to its end.

    `visits` is one iteration as planned: passage and group, in execution order. `kept` are the device copies of the
    groups that the stage keeps; those whose bytes are not there yet are copied at their first turn.

    Between two iterations, and before a component's first group, pipelines copy small things of their own (timesteps,
    rotary tables), and often wait for them. The GPU copies in the order in which it was asked to, so of an iteration
    that has not begun no more is asked for than the largest group: about what the end of the one before hides. Where
    the host runs ahead of the device that costs nothing.
    """

    def __init__(
        self,
        lane: Lane,
        visits: Sequence[tuple[Passage, Group]],
        num_iterations: int,
        kept: Mapping[Group, Copy],
        tables: Tables | None = None,
    ) -> None:
        self.inputs: dict[BoundComponent, list[Brought]] = {}
        """Copies of inputs, which are known again and live as long."""
        self.tables = tables or Tables()
        """Tables that layers make, likewise."""
        self._lane, self._visits, self._kept = lane, visits, kept
        streams = any(passage.ring is not None for passage, _ in visits)
        self._end = len(visits) * (num_iterations if streams else 1)
        self._next = 0  # number of the visit to ask for next, over all iterations
        self._last = -1  # number of the last visit that was streamed
        self._begun = 0  # visits before this number are of iterations that have begun
        self._ahead_bytes = 0  # asked for beyond them
        self._most_ahead_bytes = max((group.num_bytes for _, group in visits if group.moves), default=0)
        self.ask_ahead()

    def ask_ahead(self) -> None:
        """Ask for copies in order, as far as there is room and the iteration has begun."""
        while self._next < self._end and self._ask(*self._visits[self._next % len(self._visits)]):
            self._next += 1

    def _ask(self, passage: Passage, group: Group) -> bool:
        """Ask for the copy of the next visit, if that needs one; False if it is not the time yet."""
        copy = self._kept.get(group)
        if not (copy.is_absent if copy is not None else group.moves and passage.ring is not None):
            return True
        ahead_bytes = self._ahead_bytes + group.num_bytes if self._next >= self._begun else 0
        if ahead_bytes > self._most_ahead_bytes:
            return False
        if copy is not None:
            self._load(group, copy)
        elif passage.ring is not None:
            if not passage.ring.has_room(group):
                return False
            passage.ring.ask(self._lane, group, self._next)
        self._ahead_bytes = ahead_bytes
        return True

    def _begin(self, number: int) -> None:
        """Ask for the rest of the copies of a visit's iteration, which has begun."""
        if number >= self._begun:
            num_visits = max(len(self._visits), 1)
            self._begun = (number // num_visits + 1) * num_visits
            self.ask_ahead()

    def enter(self, passage: Passage, group: Group) -> None:
        """Have a group's weights on the device before it computes; what computed before it is done."""
        if passage.current is group:
            return
        self.leave(passage)
        passage.current = group
        if (copy := self._kept.get(group)) is not None:
            self.arrive(group, copy)
        elif group.moves and passage.ring is not None:
            passage.place = self._take(passage, passage.ring, group)
        self._begin(max(self._last, 0))

    def leave(self, passage: Passage) -> None:
        """Let the place of the group that computed last be overwritten."""
        place = passage.place
        if place is not None:
            place.group.use_master()
        passage.place = passage.current = None
        if place is not None:
            place.left = self._lane.passed()
            place.is_wanted = False
            self.ask_ahead()

    def close(self, passages: Iterable[Passage]) -> None:
        """End the stage: no parameter points into a ring any more."""
        for passage in passages:
            if passage.place is not None:
                passage.place.group.use_master()
            passage.place = passage.current = None

    def arrive(self, group: Group, copy: Copy) -> None:
        """Have a kept group's weights on the device for later computation."""
        if not copy.has_arrived:
            if copy.is_absent:
                self._load(group, copy)
            if copy.ready is not None:
                self._lane.wait(copy.ready)
            copy.ready, copy.has_arrived = None, True
            group.use_copy(copy.tensors)

    def _load(self, group: Group, copy: Copy) -> None:
        copy.ready = self._lane.copy(group, copy.flat, None)

    def _take(self, passage: Passage, ring: Ring, group: Group) -> Place:
        place = ring.next_waiting(group)
        if place is None:
            self._catch_up(passage, ring, group)
            place = ring.waiting.popleft()
        self._last = place.number
        self._lane.wait(place.ready)
        group.use_copy(ring.copy_at(group, place.start)[1])
        return place

    def _catch_up(self, passage: Passage, ring: Ring, group: Group) -> None:
        """Copy a group that is out of the planned order on the spot, and take the order up again from there."""
        for other, _ in self._visits:
            if other.ring is not None:
                other.ring.forget_waiting()
        ahead = range(self._last + 1, self._last + 1 + len(self._visits))
        turn = next((n for n in ahead if self._visits[n % len(self._visits)] == (passage, group)), self._last)
        logger.debug("group %s is out of the planned order: order taken up again at visit %d", group.name, turn)
        ring.ask(self._lane, group, turn)
        self._next = turn + 1
        if turn >= self._end:
            self._end = ENDLESS  # more iterations than planned, and no one knows how many
