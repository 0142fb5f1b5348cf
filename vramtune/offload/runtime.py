"""A plan at work on a pipeline: its calls, the life of its components, and the way out."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch

from vramtune.contract import installation_of
from vramtune.offload.binding import Binding, BoundComponent
from vramtune.offload.component_calls import ComponentCalls
from vramtune.offload.conductor import Conductor
from vramtune.offload.hooks import hook_component, unhook_component
from vramtune.offload.memory_limit import limit_memory
from vramtune.offload.meter import Meter
from vramtune.offload.pipeline_class import PipelineTakeover
from vramtune.schema import Measurement, Plan

logger = logging.getLogger(__name__)


class Runtime:
    """A plan at work on a pipeline, until `remove()`."""

    def __init__(self, pipe: Any, plan: Plan, device: torch.device, context_bytes: int | None) -> None:
        self.plan, self.device = plan, device
        self._pipe, self._meter = pipe, Meter(device, context_bytes)
        self._limit_bytes = plan.budget_bytes - (context_bytes or 0)
        self._binding = Binding(pipe, plan)
        self._conductor = Conductor(self._binding, device, self._meter)
        self._lock = threading.RLock()
        self._component_calls = ComponentCalls(self._conductor, self._meter, self._lock)
        self._num_calls = 0
        """Number of the pipeline's calls that are running, one inside the other."""
        self._takeover = PipelineTakeover(pipe, self, plan)
        try:
            self._takeover.apply()
            for component in self._binding.components:
                self._adopt(component)
            torch.accelerator.empty_cache()
        except BaseException:
            self.remove()
            raise

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
    def is_installed(self) -> bool:
        """Whether the plan is at work: until `remove()`."""
        return installation_of(self._pipe) is self

    @property
    def measured(self) -> Measurement | None:
        """The pipeline's last finished call, measured; None before there is one."""
        with self._lock:
            return self._meter.measurement()

    @property
    def overrun_bytes(self) -> dict[str, int]:
        """Bytes that out-of-memory errors took from the weights' share, by stage: activations needed them."""
        names = (stage.name for stage in self.plan.stages)
        return {name: num for name, num in zip(names, self._conductor.overrun_bytes, strict=True) if num}

    def remove(self) -> None:
        """Give the pipeline back as it was: devices, hooks, attributes, and the memory."""
        with self._lock:
            if self.is_installed:
                for component in self._binding.components:
                    self._dismiss(component)
                    for held in (held for group in component.groups for held in group.held):
                        held.tensor.data = held.tensor.data.to(held.device_before)
                self._binding.components.clear()
                torch.accelerator.empty_cache()
                self._takeover.undo()

    # ------------------------------------------------------------------------------------------------
    # What the pipeline's methods become

    @contextmanager
    def call(self) -> Iterator[None]:
        """Hold the budget during the pipeline's call, and free all but the resident groups at its end."""
        with self._lock:
            if self._num_calls == 0:
                self._meter.discard()
                self._exchange_components()
            self._num_calls += 1
            try:
                # diffusers' calls are without gradients; so are other methods here, whose weights are overwritten
                with torch.no_grad(), limit_memory(self.device, self._limit_bytes):
                    yield
                if self._num_calls == 1:
                    self._meter.finish()
            finally:
                self._num_calls -= 1
                if self._num_calls == 0:
                    self._conductor.end_call()

    def end_call(self) -> None:
        """Free all but the resident groups."""
        with self._lock:
            self._conductor.end_call()

    def apply_again(self) -> None:
        """Put the plan back on components whose hooks someone took off to change them, as the LoRA loader does."""
        with self._lock:
            self._conductor.end_call()
            for component in [c for c in self._binding.components if not c.is_hooked]:
                self._put_in(component, self._binding.bind_again(component))

    # ------------------------------------------------------------------------------------------------
    # Components

    def _exchange_components(self) -> None:
        """Take over the components that were exchanged, put in or taken out since the last call."""
        for old, new in self._binding.exchanges():
            logger.debug("component %s was exchanged or put in since the last call", new.name)
            if old is not None:
                self._dismiss(old)
            self._put_in(old, new)

    def _put_in(self, old: BoundComponent | None, new: BoundComponent) -> None:
        self._binding.replace(old, new)
        self._adopt(new)

    def _adopt(self, component: BoundComponent) -> None:
        self._conductor.adopt(component)
        hook_component(component, self._component_calls)

    def _dismiss(self, component: BoundComponent) -> None:
        unhook_component(component)
        self._component_calls.detach(component)
