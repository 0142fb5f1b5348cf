"""What the methods of components become: inputs and weights on the device, and run again where memory runs out."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from vramtune.contract import keeps_steps
from vramtune.offload.binding import BoundComponent
from vramtune.offload.conductor import Conductor
from vramtune.offload.embeddings import Embeddings
from vramtune.offload.hooks import restore_methods
from vramtune.offload.inputs import Brought, to_device
from vramtune.offload.memory_limit import MemoryLimit
from vramtune.offload.meter import Meter
from vramtune.offload.retry import remember_draws, remember_inputs, with_room
from vramtune.offload.stack import is_pipeline_running, is_running
from vramtune.schema import call_name
from vramtune.tables import tables_kept_by


class ComponentCalls:
    """Runs the methods of a pipeline's components, one caller at a time."""

    def __init__(
        self,
        conductor: Conductor,
        meter: Meter,
        lock: threading.RLock,
        embeddings: Embeddings | None,
        *,
        take_in: Callable[[BoundComponent], BoundComponent],
        limit: Callable[[], MemoryLimit],
    ) -> None:
        self.device = conductor.device
        self._conductor, self._meter, self._lock = conductor, meter, lock
        self._casts_not_cached = CastsNotCached()
        self._embeddings = embeddings
        self._take_in = take_in
        """Takes a component in again that someone rebuilt, and returns it as it is bound then."""
        self._limit = limit
        """Holds a call of its own to the budget."""

    def run(self, component: BoundComponent, method: str, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a component's original method, or give what it returned for the same inputs, if that is kept."""
        with self._lock:  # a second thread waits until the pipeline's call of the first is over
            if is_running(_RUN, self=self, component=component):  # a method that calls another one of its component
                return original(*args, **kwargs)
            is_inner = is_running(_RUN, self=self)
            if not is_inner:
                self._casts_not_cached.restore()
                if self._conductor.is_watched and component.is_rebuilt:  # a callback unloaded a LoRA
                    component = self._take_in(component)
            run = partial(self._run, component, method, original, args, kwargs, is_inner=is_inner)
            if self._embeddings is None or is_inner:
                return run()
            return self._embeddings.known_or_new(component, method, (args, kwargs), run)

    def _run(
        self,
        component: BoundComponent,
        method: str,
        original: Callable[..., Any],
        args: Any,
        kwargs: Any,
        *,
        is_inner: bool,
    ) -> Any:
        """Call the method with weights and inputs on the device; again where memory runs out.

        One that keeps something from step to step, or changed what it was given, is not called again: what failed half way
        would count twice. The pipeline's call begins again instead.
        """

        def attempt() -> Any:
            # Inputs first, or they would wait behind the copies of weights.
            (args_there, kwargs_there), brought = self._to_device(component, (args, kwargs))
            self._conductor.enter(component, method)
            self._conductor.inputs[component] = brought
            with tables_kept_by(self._conductor):
                return original(*args_there, **kwargs_there)

        def make_room(asked_bytes: int | None) -> bool:
            self._meter.ran_out_of_memory()
            return self._conductor.make_room(component, method, asked_bytes)

        def call() -> Any:
            try:
                with nullcontext() if is_inner else self._casts_not_cached:
                    name = call_name(component.name, method)
                    return with_room(
                        attempt,
                        make_room,
                        device=self.device,
                        name=name,
                        is_repeatable=lambda: are_inputs_as_before() and not keeps_steps(component.module),
                        go_back=put_generators_back,
                    )
            finally:
                self._conductor.leave(component)

        inputs = args, kwargs
        are_inputs_as_before, put_generators_back = remember_inputs(inputs), remember_draws(self.device, inputs)
        # By hand it is a call of its own; a pipeline, also one that shares the component, will call more of them. What such a
        # one has of its own on the device by then cannot be told from copies of weights: it is not held to the budget.
        if is_pipeline_running():
            return self._conductor.run(call, is_whole=False)
        return self._conductor.run(call, limit=self._limit)

    def start(self, component: BoundComponent) -> None:
        """Have a component's root on the device: someone uses it otherwise than by its methods."""
        with self._lock:
            if not is_running(_RUN, self=self, component=component):
                self._conductor.run(lambda: self._conductor.enter(component, None), is_whole=False)

    def prepare_cast(self) -> None:
        """Make room for a cast of a component, as pipelines do between two calls, and let it happen on the masters."""
        with self._lock:
            if not is_running(_RUN, self=self):
                self._conductor.pause()

    def finish_cast(self, component: BoundComponent) -> None:
        """Take over what was cast; what was not would otherwise hold the memory that it shared with the rest."""
        with self._lock:
            if component.is_at_work and not is_running(_RUN, self=self):
                take_over = partial(self._conductor.refresh, component)
                with_room(
                    take_over,
                    lambda _: self._conductor.make_way(),
                    device=self.device,
                    name=f"taking {component.name}'s cast over",
                )

    def detach(self, component: BoundComponent) -> None:
        """Give a component its methods and weights back."""
        with self._lock:
            component.is_at_work = False
            self._casts_not_cached.restore()
            restore_methods(component)
            self._conductor.release(component)

    def _to_device(self, component: BoundComponent, inputs: Any) -> tuple[Any, list[Brought]]:
        """Inputs on the device, and what of them to know again at the component's next call."""
        return to_device(inputs, self.device, self._conductor.inputs.get(component, ()))


_RUN = ComponentCalls.run.__code__


class CastsNotCached:
    """Switches autocast's cache off: a cast copy of every float32 weight would stay on the device till autocast ends.

    What an interrupt kept from being switched on again is so by `restore`.
    """

    def __init__(self) -> None:
        self._is_switched_off = False

    def __enter__(self) -> None:
        if torch.is_autocast_cache_enabled():
            self._is_switched_off = True
            torch.set_autocast_cache_enabled(False)

    def __exit__(self, *_: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Switch it on again if this switched it off."""
        if self._is_switched_off:
            torch.set_autocast_cache_enabled(True)
            self._is_switched_off = False
