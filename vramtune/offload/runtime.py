"""A plan at work on a pipeline: its calls, the life of its components, and the way out.

Whatever is done here may be interrupted at any line. Every step can be done again, `remove` does all of them however far
the last one came, and a call first makes up for what the one before it left half done.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from vramtune.contract import forget_steps, installation_of, modules_of
from vramtune.layout import round_up
from vramtune.mapped_files import Snapshot, snapshots
from vramtune.offload.binding import Binding, BoundComponent
from vramtune.offload.component_calls import ComponentCalls
from vramtune.offload.conductor import Conductor
from vramtune.offload.embeddings import Embeddings
from vramtune.offload.float8 import Float8Weights
from vramtune.offload.groups import Group
from vramtune.offload.hooks import hook_component, is_hooked, refuse_foreign_hook, unhook_component
from vramtune.offload.memory_limit import MemoryLimit, others_bytes
from vramtune.offload.meter import Meter
from vramtune.offload.pinned import locking_bar
from vramtune.offload.pipeline_class import PipelineTakeover
from vramtune.offload.retry import remember_draws, remember_inputs, with_room
from vramtune.offload.settings import are_planned
from vramtune.offload.stack import is_running
from vramtune.schema import GroupChange, Measurement, Plan

logger = logging.getLogger(__name__)


class Runtime:
    """A plan at work on a pipeline, until `remove()`."""

    def __init__(
        self,
        pipe: Any,
        plan: Plan,
        device: torch.device,
        context_bytes: int | None,
        *,
        cache_embeddings: bool = False,
        progress: bool = False,
    ) -> None:
        self.device = device
        self._pipe, self._meter = pipe, Meter(device, context_bytes)
        self._limit = MemoryLimit(device, plan.budget_bytes - (context_bytes or 0))
        self._float8 = Float8Weights(pipe, plan)
        try:
            self._float8.apply()
            self._binding = Binding(pipe, plan)
        except BaseException:
            self._float8.undo()
            raise
        self._conductor = Conductor(self._binding, device, self._meter)
        self._lock = threading.RLock()
        self._embeddings = Embeddings() if cache_embeddings else None
        self._component_calls = ComponentCalls(
            self._conductor,
            self._meter,
            self._lock,
            self._embeddings,
            take_in=self._take_in_rebuilt,
            limit=self._limit_now,
        )
        self._is_removed = False
        self.on_measured: Callable[[Measurement], None] = lambda measurement: None
        """Told of each call whose settings are the plan's, but for the first, once the device has done with it."""
        self.on_changed: Callable[[tuple[GroupChange, ...]], Plan | None] = lambda changes: None
        """Asked for another plan when a call finds what the pipeline consists of changed; None: the plan stays."""
        self._changes: tuple[GroupChange, ...] = ()
        """Those that `on_changed` was told of last."""
        self._is_warm = self._is_to_be_told = False
        self._is_unfinished = False
        """Whether components may know steps of a call that did not end."""
        self._files: tuple[Snapshot, ...] = ()
        """Those in which weights stay, as they were."""
        self._takeover = PipelineTakeover(pipe, self, plan)
        try:
            self._begin(progress=progress)
        except BaseException:
            self.remove()
            raise

    def _begin(self, *, progress: bool) -> None:
        """Take the pipeline over, and put every weight where the plan has it between calls."""
        self._takeover.apply()
        with locking_bar(self.plan.estimate.locked_bytes, is_shown=progress) as self._conductor.on_locked:
            with_room(
                self._put_back, lambda _: self._conductor.make_way(), device=self.device, name="taking components in"
            )
        torch.accelerator.empty_cache()
        self._conductor.let_go_of_files(self._binding.placements)
        self._files = snapshots(view for group in self._groups if group.is_in_place for view in group.master_views)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        state = "installed" if self.is_installed else "removed"
        return f"<plan for a {self.plan.pipeline_class} on {self.device}: {state}>"

    @property
    def plan(self) -> Plan:
        """The plan at work: the one that was installed, or made since for what the pipeline consists of now."""
        return self._binding.plan

    @property
    def is_installed(self) -> bool:
        """Whether the plan is at work: until `remove()`."""
        return installation_of(self._pipe) is self

    @property
    def measured(self) -> Measurement | None:
        """The pipeline's last finished call, measured; None before there is one."""
        return self._meter.measurement()

    @property
    def overrun_bytes(self) -> dict[str, int]:
        """Bytes that out-of-memory errors took from the weights' share, by stage: activations needed them."""
        names = (stage.name for stage in self.plan.stages)
        return {name: num for name, num in zip(names, self._conductor.overrun_bytes, strict=True) if num}

    @property
    def embedding_bytes(self) -> int | None:
        """What kept embeddings take of the host's memory now; None where none are kept."""
        return None if self._embeddings is None else self._embeddings.num_bytes

    def remove(self) -> None:
        """Give the pipeline back as it was: devices, hooks, attributes, and the memory.

        One that was interrupted, or lacked memory, is taken up again by the next.
        """
        with self._lock:
            if self._is_removed or installation_of(self._pipe) not in (self, None):
                return
            self._tell()
            for component in self._binding.components:
                self._dismiss(component)
                for group in component.groups:
                    group.go_home()
                for computed in component.computed:
                    computed.go_home()
            self._conductor.end()
            if self._embeddings is not None:
                self._embeddings.clear()
            torch.accelerator.empty_cache()
            self._limit.end()
            self._takeover.undo()
            self._float8.undo()
            self._binding.components.clear()
            self._is_removed = True

    # ------------------------------------------------------------------------------------------------
    # What the pipeline's methods become

    def run(self, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a method of the pipeline within the budget, and free all but the resident groups at its end."""
        with self._lock:
            if is_running(_RUN, self=self):  # a method that calls another one
                return method(*args, **kwargs)
            self._limit.end()
            self._tell()
            self._refuse_foreign_hooks()
            self._float8.refuse_adapters()
            for file in self._files:
                file.refuse_changed()
            return self._conductor.run(partial(self._call, method, args, kwargs))

    def _call(self, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a method with every component as the plan wants it, also after a call or a loader that failed."""

        def take_in() -> None:
            self._conductor.take_back(self._meter.peak_bytes, self._limit.num_bytes)
            self._take_in()

        with_room(take_in, lambda _: self._conductor.make_way(), device=self.device, name="taking components in")
        limit = self._limit_now()
        inputs = args[1:], kwargs
        self._conductor.is_watched = any(callable(leaf) for leaf in tree_leaves(inputs))
        is_repeatable, put_generators_back = remember_inputs(inputs), remember_draws(self.device, inputs)

        def attempt() -> Any:
            self._forget_unfinished()
            self._is_unfinished = True
            # diffusers' calls are without gradients; so are other methods here, whose weights are overwritten
            with torch.no_grad(), limit:
                result = method(*args, **kwargs)
            self._is_unfinished = False
            return result

        def make_room(asked_bytes: int | None) -> bool:
            self._meter.ran_out_of_memory()
            with limit:
                return self._conductor.make_room_here(asked_bytes)

        def go_back() -> None:
            self._meter.restart()
            put_generators_back()

        try:
            result = with_room(attempt, make_room, device=self.device, is_repeatable=is_repeatable, go_back=go_back)
        finally:
            self._forget_unfinished()
        self._meter.finish()
        self._is_to_be_told = self._is_warm and not self._changes and are_planned(self.plan.workload, *inputs)
        self._is_warm = True
        self._tell()
        return result

    def _limit_now(self) -> MemoryLimit:
        """The limit for a call that begins: what others hold by now does not count."""
        self._limit.end()
        self._limit.others_bytes = self._meter.others_bytes = others_bytes(
            self.device,
            pieces=self._pieces,
            left_bytes=self._left_bytes,
            workspace_bytes=self._conductor.workspace_bytes,
        )
        return self._limit

    def _forget_unfinished(self) -> None:
        """Have components forget the steps of a try or a call that did not end; diffusers does that only as one ends."""
        if self._is_unfinished:
            for component in self._binding.components:
                forget_steps(component.module)
            self._is_unfinished = False

    def _tell(self) -> None:
        """Say what the last call took, if the device has done with it: nobody waits for that."""
        if self._is_to_be_told and self._meter.is_done:
            self._is_to_be_told = False
            if (measurement := self._meter.measurement()) is not None:
                self.on_measured(measurement)

    @property
    def _pieces(self) -> dict[int, int]:
        """Bytes of the pieces of memory in which groups stay, by address."""
        return {group.piece: group.piece_bytes for group in self._groups if group.piece}

    @property
    def _groups(self) -> Iterator[Group]:
        return (group for component in self._binding.components for group in component.groups)

    @property
    def _left_bytes(self) -> int:
        """What the last call left on the device with parts of the pipeline that are no modules: timesteps."""
        parts = (part for part in self._pipe.components.values() if not isinstance(part, nn.Module))
        values = (value for part in parts for value in getattr(part, "__dict__", {}).values())
        left = {v for v in values if isinstance(v, torch.Tensor) and v.device.type == self.device.type}
        return sum(round_up(tensor.untyped_storage().nbytes()) for tensor in left)

    def _take_in(self) -> None:
        """Take over what came since the last call, and what someone took our hooks off."""
        self._exchange_components()
        self._put_back()
        self._plan_again()

    def _take_in_rebuilt(self, component: BoundComponent) -> BoundComponent:
        """Take over what came in or went while a call runs, as its callbacks have it; the plan stays until the next call."""

        def take_in() -> None:
            self._exchange_components()
            self._put_back()

        with_room(take_in, lambda _: self._conductor.make_way(), device=self.device, name="taking components in")
        self._is_warm = False  # what this call takes is not what was planned
        return next(each for each in self._binding.components if each.module is component.module)

    def _plan_again(self) -> None:
        """Go over to a plan for what the pipeline consists of now, if that has changed."""
        for component in self._binding.components:
            self._conductor.refresh(component)
        changes = self._binding.changes()
        if changes != self._changes:
            logger.debug("%d weight groups differ from those that were planned for", len(changes))
            if (plan := self.on_changed(changes)) is not None:
                self._conductor.follow(plan)
                self._is_warm = False
            self._changes = changes

    def end_call(self) -> None:
        """Free all but the resident groups."""
        with self._lock:
            self._conductor.end_call()

    def apply_again(self) -> None:
        """Put the plan back on components whose hooks someone took off to change them, as the LoRA loader does."""
        with self._lock:
            self._refuse_foreign_hooks()
            self._conductor.end_call()
            self._put_back()

    # ------------------------------------------------------------------------------------------------
    # Components

    def _exchange_components(self) -> None:
        """Take over the components that were exchanged, put in or taken out since the last call."""
        for old, new in self._binding.exchanges():
            logger.debug("component %s was exchanged or put in since the last call", new.name)
            if old is not None:
                self._dismiss(old)
            self._put_in(old, new)

    def _refuse_foreign_hooks(self) -> None:
        present = {id(module) for module in modules_of(self._pipe).values()}
        for component in self._binding.components:
            if id(component.module) in present:
                refuse_foreign_hook(component)

    def _put_back(self) -> None:
        """Take over the components that someone took our hooks off, or that were put in by half."""
        for component in [c for c in self._binding.components if not (c.is_at_work and is_hooked(c))]:
            self._dismiss(component)
            self._put_in(component, self._binding.bind_again(component))

    def _put_in(self, old: BoundComponent | None, new: BoundComponent) -> None:
        self._binding.replace(old, new)
        self._adopt(new)

    def _adopt(self, component: BoundComponent) -> None:
        self._conductor.adopt(component)
        hook_component(component, self._component_calls)
        component.is_at_work = True

    def _dismiss(self, component: BoundComponent) -> None:
        unhook_component(component)
        self._component_calls.detach(component)


_RUN = Runtime.run.__code__
