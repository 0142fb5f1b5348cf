"""A plan made so on a pipeline, and undone: accelerate hooks in and out, one caller at a time."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from accelerate.utils import send_to_device
from torch.utils._pytree import tree_leaves

from vramtune.contract import (
    excluded_components,
    installation_of,
    modules_of,
    refuse_placed,
    refuse_quantized,
    refuse_tuned,
)
from vramtune.errors import UsageError
from vramtune.offload.binding import Part, bind, bind_part, vacant_part
from vramtune.offload.conductor import Conductor
from vramtune.offload.device import resolve_device
from vramtune.offload.hooks import hook_component, restore_methods, unhook_component
from vramtune.offload.meter import Watch
from vramtune.offload.pipeline_class import Disguise
from vramtune.offload.retry import limited, remember_draws, with_room
from vramtune.schema import Measurement, Plan


def install(
    pipe: Any,
    plan: Plan,
    *,
    device: torch.device | str | None = None,
    gpu_id: int | None = None,
    context_bytes: int | None = None,
) -> "Installation":
    """Install a plan on a pipeline: as a statement, or as a context manager that removes it at its end.

    `device` and `gpu_id` mean what they mean in `enable_model_cpu_offload`. `context_bytes` is what the process holds
    on the device outside PyTorch's allocator, where that is known. Raises `UsageError` for a plan that was made for
    another pipeline and for pipelines that something else places, `NoAcceleratorError` where there is no GPU; the
    pipeline is then as it was.
    """
    target = resolve_device(device, gpu_id)
    if type(pipe).__name__ != plan.pipeline_class:
        raise UsageError(
            f"This plan is for a {plan.pipeline_class}; the pipeline is a {type(pipe).__name__}. Make a plan for it."
        )
    refuse_tuned(pipe)
    refuse_placed(pipe)
    refuse_quantized(pipe)
    return Installation(pipe, plan, target, Watch(target, context_bytes))


class Installation:
    """A plan at work on a pipeline, until `remove()`."""

    def __init__(self, pipe: Any, plan: Plan, device: torch.device, watch: Watch) -> None:
        self.plan, self.device = plan, device
        self._pipe, self._watch = pipe, watch
        self._limit_bytes = plan.budget_bytes - (watch.context_bytes or 0)
        self._parts = bind(modules_of(pipe), plan, excluded=excluded_components(pipe))
        self._lock = threading.RLock()
        self._num_calls = 0  # of the pipeline, that are running one inside the other
        self._running: set[Part] = set()
        self._conductor = Conductor(self._parts, plan, device, watch)
        self._disguise = Disguise(pipe, self, plan)
        try:
            self._disguise.put_on()
            for part in self._parts:
                self._adopt(part)
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
            return self._watch.measurement()

    @property
    def overrun_bytes(self) -> dict[str, int]:
        """By stage: what out-of-memory errors took from the weights' share, because activations needed it."""
        names = (stage.name for stage in self.plan.stages)
        return {name: num for name, num in zip(names, self._conductor.overrun_bytes, strict=True) if num}

    def remove(self) -> None:
        """Give the pipeline back as it was: devices, hooks, attributes, and the memory."""
        with self._lock:
            if self.is_installed:
                for part in list(self._parts):
                    self._dismiss(part)
                    for held in (held for group in part.groups for held in group.held):
                        held.tensor.data = held.tensor.data.to(held.device_before)
                self._parts.clear()
                torch.accelerator.empty_cache()
                self._disguise.take_off()

    # ------------------------------------------------------------------------------------------------
    # What the pipeline's methods become

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around the pipeline's `__call__`: the budget holds, and at the end only what is resident is on the device."""
        with self._lock:
            if self._num_calls == 0:
                self._watch.abandon()
                self._take_over_replaced()
            self._num_calls += 1
            try:
                with limited(self.device, self._limit_bytes):
                    yield
                if self._num_calls == 1:
                    self._watch.finish()
            finally:
                self._num_calls -= 1
                if self._num_calls == 0:
                    self._conductor.rest()

    def rest(self) -> None:
        """Free all but what is resident."""
        with self._lock:
            self._conductor.rest()

    def apply_again(self) -> None:
        """Put the plan back on components whose hooks someone took off to change them, as the LoRA loader does."""
        with self._lock:
            self._conductor.rest()
            for part in [part for part in self._parts if not part.is_hooked]:
                self._replace(
                    part, bind_part(part.name, part.module, self.plan, is_excluded=part.is_excluded)
                )

    # ------------------------------------------------------------------------------------------------
    # Components

    def _adopt(self, part: Part) -> None:
        self._conductor.adopt(part)
        hook_component(
            part,
            self.device,
            run=partial(self._run, part),
            on_start=partial(self._started, part),
            on_detach=partial(self._detached, part),
            on_cast=self._cast,
        )

    def _dismiss(self, part: Part) -> None:
        unhook_component(part)
        self._detached(part)

    def _detached(self, part: Part) -> None:
        with self._lock:
            restore_methods(part)
            self._conductor.release(part)

    def _replace(self, old: Part, new: Part) -> None:
        if new.module is old.module:
            new.restore_devices_before(old.devices_before())
        self._parts[self._parts.index(old)] = new
        self._conductor.parts = self._parts
        self._adopt(new)

    def _take_over_replaced(self) -> None:
        """Components that were exchanged, put in or taken out since the last call."""
        components = modules_of(self._pipe)
        for part in [part for part in self._parts if components.get(part.name) is not part.module]:
            new = components.get(part.name)
            if new is None and part.is_vacant:
                continue
            kept = {p.name: p.module for p in self._parts if p is not part}
            found = (
                vacant_part(part.name, self.plan)
                if new is None
                else next(
                    p
                    for p in bind({**kept, part.name: new}, self.plan, excluded=self._excluded)
                    if p.name == part.name
                )
            )
            self._dismiss(part)
            self._replace(part, found)
        for part in [part for part in self._parts if part.is_rebuilt and not part.is_vacant]:
            self._dismiss(part)
            self._replace(part, bind_part(part.name, part.module, self.plan, is_excluded=part.is_excluded))
        known = {part.module for part in self._parts}
        for name, module in components.items():
            if module not in known:
                part = bind_part(name, module, self.plan, is_excluded=name in self._excluded)
                self._parts.append(part)
                self._conductor.parts = self._parts
                self._adopt(part)

    @property
    def _excluded(self) -> tuple[str, ...]:
        return excluded_components(self._pipe)

    # ------------------------------------------------------------------------------------------------
    # What the components' methods become

    def _run(self, part: Part, method: str, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        with self._lock:  # a second thread waits until the call of the first is over
            if part in self._running:  # a method that calls another one of its component
                return original(*args, **kwargs)
            self._running.add(part)
            go_back = remember_draws(self.device, (args, kwargs))
            try:
                with _casts_not_cached():
                    return with_room(
                        lambda: self._attempt(part, method, original, args, kwargs),
                        lambda: self._make_room(part, method, go_back),
                        device=self.device,
                    )
            finally:
                self._running.discard(part)
                self._conductor.leave(part)

    def _cast(self) -> None:
        """A component is cast, as pipelines do between two of its calls: on its master, with room on the device."""
        with self._lock:
            if not self._running:
                self._conductor.pause()

    def _attempt(self, part: Part, method: str, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        args, kwargs = self._brought((args, kwargs))  # first, or they would wait for the weights to be copied
        self._conductor.enter(part, method)
        return original(*args, **kwargs)

    def _make_room(self, part: Part, method: str, go_back: Callable[[], None]) -> bool:
        self._watch.ran_out_of_memory()
        go_back()
        return self._conductor.make_room(part, method)

    def _started(self, part: Part) -> None:
        with self._lock:
            if part not in self._running:
                self._conductor.enter(part, None)

    def _brought(self, inputs: Any) -> Any:
        """Arguments on the device; nothing is rebuilt if they are there (a cache in them may be written to)."""
        elsewhere = (
            x
            for x in tree_leaves(inputs)
            if isinstance(x, torch.Tensor) and x.dim() and x.device != self.device
        )
        return send_to_device(inputs, self.device) if next(elsewhere, None) is not None else inputs


@contextmanager
def _casts_not_cached() -> Iterator[None]:
    """Under autocast a cast copy of every float32 weight would stay on the device until autocast ends."""
    was_enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(was_enabled)
