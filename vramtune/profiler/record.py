"""Run a pipeline's own `__call__`, or another method of it, while its components answer from fake tensors, and record what they did."""

import gc
import logging
import random
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging
from torch import nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import flex_attention
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

from vramtune.compiled import units_of
from vramtune.contract import (
    CALL,
    Pipeline,
    blocks_by_shell,
    computed_names,
    entries,
    may_be_stored_in_float8,
    modules_of,
    switched_off_tiling,
)
from vramtune.contract.tracing import forward_to_follow
from vramtune.errors import TraceError
from vramtune.layout import round_up
from vramtune.profiler.arguments import NOTHING
from vramtune.profiler.execution import ComponentMethod, Execution, trace_call, weights_of
from vramtune.profiler.fake_copy import cached_fakes_forgotten, fake_copy, stored_in_float8
from vramtune.profiler.known_values import PipelineTracker
from vramtune.profiler.signature import describe
from vramtune.profiler.tensor_trees import map_tensors, tensors_of
from vramtune.profiler.tracker import Entry, Weight
from vramtune.schema import Kernels, call_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One call that the pipeline made."""

    execution: Execution
    tape_position: int
    """Length of the pipeline's own tape when the call began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedComponent:
    """A component as it was before the pipeline ran."""

    class_name: str
    weights: tuple[Weight, ...]
    shells: dict[str, tuple[str, ...]]
    """The modules that diffusers' block-level group offload hooks, with their blocks (`contract.blocks_by_shell`)."""
    computed_bytes: dict[str, int] = field(default_factory=dict)
    """Bytes of what hooks compute from the weights (`contract.computed_names`), by layer."""
    units: frozenset[str] = frozenset()
    """The modules that are called compiled (`compiled.units_of`); the copy is not."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """What one call of a pipeline did: its components' calls, and the pipeline's own work between them."""

    components: dict[str, RecordedComponent]
    calls: tuple[Call, ...]
    pipeline_tape: tuple[Entry, ...]
    call_kwargs: Mapping[str, object]


def record_runs(
    pipe: Pipeline,
    calls_kwargs: Sequence[Mapping[str, object]],
    *,
    method: str = CALL,
    first: Mapping[str, Mapping[str, object]] = NOTHING,
    largest_real_bytes: int,
    on_call: Callable[[str], None],
    kernels: Kernels = "cuda",
    permissions: Collection[str] = (),
    tries: Sequence[Mapping[str, object]] = (),
) -> list[Recording]:
    """Run a method of a copy of the pipeline on fake weights, with each of these arguments; the pipeline itself is not touched.

    What is alike in the calls is traced once, and under each permission. Components' outputs up to `largest_real_bytes` reach
    the pipeline's own code as real zeros, larger ones as fakes: neither materialised nor computed with. The methods in
    `first` run before each call, with their arguments; of them only what they leave is recorded. Calls in `tries` come last,
    and are left out where the pipeline refuses them.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    recordings = []
    with (
        torch.inference_mode(False),  # in which fewer operations are taken apart, and kernels' copies are not seen
        _on_the_host(),
        _random_state_restored(),
        _single_threaded(),
        _quiet_libraries(),
        flex_attention_executed(),
        cached_fakes_forgotten(),
        _older_objects_frozen(),
    ):
        copied = fake_copy(pipe, mode)
        units = {name: frozenset(units_of(module)) for name, module in modules_of(pipe).items()}
        components = {name: recorded_component(module, units[name]) for name, module in modules_of(copied).items()}
        recorder = Recorder(mode, largest_real_bytes, on_call, kernels, permissions)
        recorder.answer_for(modules_of(copied))
        for number, call_kwargs in enumerate([*calls_kwargs, *tries]):
            recorder.begin()
            try:
                for name, kwargs in first.items():
                    recorder.run(getattr(copied, name), kwargs)
                    recorder.keep_what_is_left()
                recorder.run(getattr(copied, method), call_kwargs)
            except Exception as error:
                if number < len(calls_kwargs):
                    raise
                logger.debug("%s is refused: %s", call_kwargs, error)
                continue
            tape = tuple(recorder.pipeline.tape)
            recordings.append(
                Recording(
                    components=components, calls=tuple(recorder.calls), pipeline_tape=tape, call_kwargs=call_kwargs
                )
            )
    return recordings


def recorded_component(component: nn.Module, units: frozenset[str] = frozenset()) -> RecordedComponent:
    """What the inventory needs to know of a component besides its calls."""
    return RecordedComponent(
        class_name=type(component).__name__,
        weights=tuple(weights_of(component).values()),
        units=units,
        shells=blocks_by_shell(component),
        computed_bytes={
            path: sum(round_up(vars(module)[name].nbytes) for name in names)
            for path, module in component.named_modules()
            if (names := computed_names(module))
        },
    )


class Recorder:
    """Answers for the components' methods while the pipeline runs."""

    def __init__(
        self,
        mode: FakeTensorMode,
        largest_real_bytes: int,
        on_call: Callable[[str], None],
        kernels: Kernels = "cuda",
        permissions: Collection[str] = (),
    ) -> None:
        self._mode, self._largest_real_bytes, self._on_call, self._kernels = mode, largest_real_bytes, on_call, kernels
        self._permissions = permissions
        self.calls: list[Call]
        self.pipeline: PipelineTracker
        """Tracks the pipeline's own work."""
        self.begin()
        self._executions: dict[object, list[Execution]] = {}
        """Traces by what makes calls equal; more than one where values decided what a call did."""
        self._is_tracing = False
        self._kept_alive: list[object] = []
        """Arguments that keys name by `id`."""

    def begin(self) -> None:
        """Record another call; the executions stay."""
        self.calls, self.pipeline = [], PipelineTracker(self._mode, self._largest_real_bytes)

    def run(self, method: Callable[..., Any], call_kwargs: Mapping[str, object]) -> None:
        """Run a method of the pipeline, with copies of its arguments."""
        inputs = tree_map(_fresh_generator, map_tensors(_on_cpu, dict(call_kwargs)))
        for tensor in tensors_of(inputs):
            self.pipeline.count(tensor)
        with torch.no_grad(), self.pipeline:
            method(**inputs)

    def keep_what_is_left(self) -> None:
        """Forget the calls so far, and all memory but what is still held."""
        self.calls = []
        self.pipeline.keep_what_is_left()

    def answer_for(self, components: Mapping[str, nn.Module]) -> None:
        """Replace the methods on the instances, which are copies."""
        names: dict[nn.Module, str] = {}
        for name, component in components.items():
            names.setdefault(component, name)  # two names may stand for one module
        for component, name in names.items():
            for entry, (module, method) in entries(component).items():
                original = getattr(module, method)
                called = None if method != "forward" else "" if module is component else entry
                run = (called == "" and forward_to_follow(component)) or original
                target = ComponentMethod(component=name, method=entry, module=component, run=run, called=called)
                vars(module)[method] = self._answering(target, original)

    def _answering(self, target: ComponentMethod, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)  # pipelines look at the signature
        def answering(*args: Any, **kwargs: Any) -> Any:
            return self.answer(target, args, kwargs)

        return answering

    def answer(self, target: ComponentMethod, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the component's method returns, from its execution."""
        if self._is_tracing:  # a method of the component that calls another one
            return target.run(*args, **kwargs)
        position = len(self.pipeline.tape)
        with _disable_current_modes(), self._tracing():
            execution = self._execution(target, (args, kwargs))
            outputs = self._for_pipeline(execution.outputs)
        self.calls.append(Call(execution=execution, tape_position=position))
        for tensor in tensors_of(outputs):
            self.pipeline.count_unknown(tensor)
        return outputs

    @contextmanager
    def _tracing(self) -> Iterator[None]:
        self._is_tracing = True
        try:
            yield
        finally:
            self._is_tracing = False

    def _execution(self, target: ComponentMethod, inputs: Any) -> Execution:
        """The execution of a call like this one: a new one, if there was none yet."""
        dtype = next((weight.dtype for weight in target.module.parameters()), None)  # a pipeline may cast it
        arguments = describe(inputs)
        executions = self._executions.setdefault((target.component, target.method, dtype, arguments.key), [])
        if (known := self._like(executions, inputs)) is not None and not known.left_behind:
            return known
        self._kept_alive += arguments.objects
        name, began = call_name(target.component, target.method), time.perf_counter()
        self._on_call(name)
        execution = trace_call(target, inputs, self._mode, is_known=self.pipeline.is_known, kernels=self._kernels)
        self.pipeline.adopt(storage for reference in execution.left_behind if (storage := reference()) is not None)
        if known is not None and execution.tape == known.tape:
            return known  # the same again; it ran for what it leaves behind
        executions.append(replace(execution, permitted=dict(self._permitted(target, inputs))))
        logger.debug("traced %s in %.2f s", name, time.perf_counter() - began)
        return executions[-1]

    def _like(self, executions: Sequence[Execution], inputs: Any) -> Execution | None:
        """The execution of a call whose values, as far as they decided anything, are these: the last, which found what the
        first one left behind (a cache of positions)."""
        given = tensors_of(inputs) if any(execution.deciding_values for execution in executions) else []
        for execution in reversed(executions):
            decided = execution.deciding_values.items()
            if all(self.pipeline.is_known(given[n]) and torch.equal(given[n], value) for n, value in decided):
                return execution
        return None

    def _permitted(self, target: ComponentMethod, inputs: Any) -> Iterator[tuple[str, Execution]]:
        """The same call under each permission that changes something of the component; where it fails it is not offered."""
        ways: dict[str, AbstractContextManager[None]] = {}
        if "vae_tiling" in self._permissions and switched_off_tiling(target.module):
            ways["vae_tiling"] = tiled(target.module)
        if "fp8_weights" in self._permissions and may_be_stored_in_float8(target.module):
            ways["fp8_weights"] = stored_in_float8(target.module)
        for permission, way in ways.items():
            try:
                with way:
                    execution = trace_call(
                        target, inputs, self._mode, is_known=self.pipeline.is_known, kernels=self._kernels
                    )
            except TraceError as error:
                logger.debug("%s cannot be followed with %s: %s", target.component, permission, error)
            else:
                yield permission, execution

    def _for_pipeline(self, outputs: Any) -> Any:
        """What the pipeline's own code gets; views of one storage stay views of one storage."""
        bases: dict[tuple[int, torch.dtype], torch.Tensor] = {}

        def substitute(fake: torch.Tensor) -> torch.Tensor:
            storage = fake.untyped_storage()
            key = storage._cdata, fake.dtype
            if key not in bases:
                is_small = storage.nbytes() <= self._largest_real_bytes
                with nullcontext() if is_small else self._mode:
                    bases[key] = torch.zeros(storage.nbytes() // fake.element_size(), dtype=fake.dtype)
            return bases[key].as_strided(fake.shape, fake.stride(), fake.storage_offset())

        return map_tensors(substitute, outputs)


@contextmanager
def tiled(vae: Any) -> Iterator[None]:
    """While entered, it works tile by tile."""
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.disable_tiling()


def _on_the_host() -> AbstractContextManager[object]:
    """Where the pipeline makes its tensors: beside the fake weights, also where `torch.set_default_device` says otherwise."""
    # only then: it looks at every function that is called
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


@contextmanager
def _random_state_restored() -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@contextmanager
def _single_threaded() -> Iterator[None]:
    # The pipeline's own arithmetic is on small tensors: a second thread would only spin.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


@contextmanager
def _older_objects_frozen() -> Iterator[None]:
    """While entered, the garbage collector walks what a trace makes, not the half a million objects of the libraries."""
    if gc.get_freeze_count():  # somebody's own
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Silence diffusers' warnings, which come again when the pipeline really runs.

    And the traceback that torch logs of an operation that fails: our error says the same.
    """
    verbosity, was_disabled = diffusers_logging.get_verbosity(), fake_tensor.log.disabled
    diffusers_logging.set_verbosity_error()
    fake_tensor.log.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        diffusers_logging.set_verbosity(verbosity)
        fake_tensor.log.disabled = was_disabled


@contextmanager
def flex_attention_executed() -> Iterator[None]:
    """While entered, flex attention is executed rather than compiled, which it refuses under our modes.

    `_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG` in `torch/nn/attention/flex_attention.py`. Without `torch.compile` around
    it, what it compiles with is eager too: the same operations.
    """
    before = flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG
    flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True
    try:
        yield
    finally:
        flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = before


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor.cpu()


def _fresh_generator(value: Any) -> Any:
    # The user's keeps its state, and may be one of a GPU.
    return torch.Generator("cpu") if isinstance(value, torch.Generator) else value
