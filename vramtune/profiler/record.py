"""Run a pipeline's own `__call__` while its components answer from fake tensors; write down what they did."""

import copy
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from torch import nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from vramtune.contract import METHODS, blocks_by_shell, modules_of, switched_off_tiling
from vramtune.errors import TraceError
from vramtune.profiler.fake_weights import on_fake_weights, restored
from vramtune.profiler.memo import memoised_children
from vramtune.profiler.signature import describe
from vramtune.profiler.tracker import Entry, Tracker, Usage, Weight
from vramtune.schema import call_name


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """One call of a component's method, on fake tensors."""

    component: str
    method: str
    weights: tuple[Weight, ...]
    """All the component's weights, as they were during the call: a pipeline may change their dtype."""
    tape: tuple[Entry, ...]
    usage: Usage
    outputs: Any
    tiled: "Trace | None"
    """The same call with VAE tiling on; None where there is no such thing or it is on already."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One call that the pipeline made."""

    trace: Trace
    glue_position: int
    """Length of the pipeline's own tape at the moment of the call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A component as it was before the call."""

    class_name: str
    weights: tuple[Weight, ...]
    shells: dict[str, tuple[str, ...]]
    """What diffusers' block-level group offload hooks around: the component ("") and modules that it names, each
    with the blocks in it that move by themselves."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """What one call of a pipeline did: its components' calls, and the work of the pipeline itself between them."""

    parts: dict[str, Part]
    calls: tuple[Call, ...]
    glue: tuple[Entry, ...]


def record_calls(
    pipe: DiffusionPipeline,
    call_kwargs: Mapping[str, object],
    *,
    largest_real_bytes: int,
    on_call: Callable[[str], None],
) -> Recording:
    """Run the pipeline on fake weights; afterwards it is as it was.

    Components' outputs up to `largest_real_bytes` reach the pipeline's own code as real zeros, larger ones as
    fakes: neither materialised nor computed with.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    inputs = tree_map(_fresh_generator, map_tensors(_on_cpu, dict(call_kwargs)))
    with on_fake_weights(pipe, mode), _quiet_libraries():
        parts = {name: part_of(component) for name, component in modules_of(pipe).items()}
        recorder = Recorder(mode, largest_real_bytes, on_call)
        recorder.answer_for(modules_of(pipe))
        for tensor in tensors_of(inputs):
            recorder.glue.count(tensor)
        with torch.no_grad(), recorder.glue:
            pipe(**inputs)
    return Recording(parts=parts, calls=tuple(recorder.calls), glue=tuple(recorder.glue.tape))


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Without what diffusers warns of: it says nothing about costs, and comes again when the pipeline really runs.

    And without the traceback that torch logs of an operation that fails: the error says the same.
    """
    verbosity, was_disabled = logging.get_verbosity(), fake_tensor.log.disabled
    logging.set_verbosity_error()
    fake_tensor.log.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        fake_tensor.log.disabled = was_disabled


def part_of(component: nn.Module) -> Part:
    """What the inventory needs to know of a component besides its calls."""
    return Part(
        class_name=type(component).__name__,
        weights=tuple(weights_of(component).values()),
        shells=blocks_by_shell(component),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Target:
    """A component's method that is answered from traces."""

    component: str
    method: str
    module: nn.Module
    run: Callable[..., Any]
    """The method itself."""


class Recorder:
    """Stands in for the components' methods while the pipeline runs."""

    def __init__(self, mode: FakeTensorMode, largest_real_bytes: int, on_call: Callable[[str], None]) -> None:
        self.calls: list[Call] = []
        self.glue = Tracker(weights={})
        self._mode, self._largest_real_bytes, self._on_call = mode, largest_real_bytes, on_call
        self._traces: dict[object, Trace] = {}
        self._is_tracing = False
        self._kept_alive: list[object] = []
        """Arguments that keys name by `id`."""

    def answer_for(self, components: Mapping[str, nn.Module]) -> None:
        """Replace the methods on the instances; whoever restores the instances undoes it."""
        names: dict[nn.Module, str] = {}
        for name, component in components.items():
            names.setdefault(component, name)  # two names may stand for one module
        for component, name in names.items():
            for method in METHODS:
                if callable(original := getattr(component, method, None)):
                    target = Target(component=name, method=method, module=component, run=original)
                    vars(component)[method] = self._answering(target)

    def _answering(self, target: Target) -> Callable[..., Any]:
        @wraps(target.run)  # pipelines look at the signature
        def answering(*args: Any, **kwargs: Any) -> Any:
            return self.answer(target, args, kwargs)

        return answering

    def answer(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the component's method returns, from its trace."""
        if self._is_tracing:  # a method of the component that calls another one
            return target.run(*args, **kwargs)
        position = len(self.glue.tape)
        with _disable_current_modes(), self._tracing():
            trace = self._trace(target, (args, kwargs))
            outputs = self._handed_over(trace.outputs)
        self.calls.append(Call(trace=trace, glue_position=position))
        for tensor in tensors_of(outputs):
            self.glue.count(tensor)
        return outputs

    @contextmanager
    def _tracing(self) -> Iterator[None]:
        self._is_tracing = True
        try:
            yield
        finally:
            self._is_tracing = False

    def _trace(self, target: Target, inputs: Any) -> Trace:
        """The trace of a call like this one: a new one, if there was none yet."""
        dtype = next((weight.dtype for weight in target.module.parameters()), None)  # a pipeline may cast it
        arguments = describe(inputs)
        key = (target.component, target.method, dtype, arguments.key)
        if key not in self._traces:
            self._kept_alive += arguments.objects
            self._on_call(call_name(target.component, target.method))
            self._traces[key] = replace(self._run(target, inputs), tiled=self._tiled(target, inputs))
        return self._traces[key]

    def _tiled(self, target: Target, inputs: Any) -> Trace | None:
        if not switched_off_tiling(target.module):
            return None
        with restored([target.module]):
            target.module.enable_tiling()  # type: ignore[operator]
            return self._run(target, inputs)

    def _run(self, target: Target, inputs: Any) -> Trace:
        args, kwargs = map_tensors(self._fake, inputs)
        weights = weights_of(target.module)
        tracker = Tracker(weights)
        tracker.know(tensors_of((args, kwargs)))
        paths = {module: path for path, module in target.module.named_modules()}
        owners = {owner for weight in weights.values() for owner in weight.owners}
        if target.method == "forward":  # its own module call began before this
            tracker.enter("", owners)
        try:
            with ExitStack() as entered:
                entered.enter_context(torch.no_grad())
                entered.enter_context(self._mode)
                entered.enter_context(tracker.watch_modules(paths, owners))
                entered.enter_context(memoised_children(target.module, tracker, self._mode))
                entered.enter_context(tracker)
                outputs = target.run(*args, **kwargs)
        except Exception as error:
            raise _untraceable(target, error, paths) from error
        return Trace(
            component=target.component,
            method=target.method,
            weights=tuple(weights.values()),
            tape=tuple(tracker.tape),
            usage=tracker.usage,
            outputs=outputs,
            tiled=None,
        )

    def _handed_over(self, outputs: Any) -> Any:
        """What the pipeline's own code gets; views of one storage stay views of one storage."""
        bases: dict[tuple[int, torch.dtype], torch.Tensor] = {}

        def stand_in(fake: torch.Tensor) -> torch.Tensor:
            storage = fake.untyped_storage()
            key = storage._cdata, fake.dtype
            if key not in bases:
                is_small = storage.nbytes() <= self._largest_real_bytes
                with nullcontext() if is_small else self._mode:
                    bases[key] = torch.zeros(storage.nbytes() // fake.element_size(), dtype=fake.dtype)
            return bases[key].as_strided(fake.shape, fake.stride(), fake.storage_offset())

        return map_tensors(stand_in, outputs)

    def _fake(self, tensor: torch.Tensor) -> torch.Tensor:
        with self._mode:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")


def weights_of(component: nn.Module) -> dict[int, Weight]:
    """The component's parameters and buffers by storage (its `_cdata`), tied ones once."""
    owners: dict[torch.Tensor, list[str]] = {}
    names: dict[torch.Tensor, str] = {}
    buffers: set[torch.Tensor] = set()
    for path, module in component.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                owners.setdefault(tensor, []).append(path)
                names.setdefault(tensor, f"{path}.{name}" if path else name)
        buffers.update(tensor for tensor in module._buffers.values() if tensor is not None)
    return {
        tensor.untyped_storage()._cdata: Weight(
            name=name,
            owners=tuple(owners[tensor]),
            num_bytes=tensor.numel() * tensor.element_size(),
            dtype=str(tensor.dtype).removeprefix("torch."),
            is_buffer=tensor in buffers,
        )
        for tensor, name in names.items()
    }


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """A copy of nested containers, model outputs and distributions with each tensor replaced."""

    def replace(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return function(leaf)
        if not _holds_tensors(leaf):
            return leaf
        twin = copy.copy(leaf)
        for name, attribute in vars(leaf).items():
            setattr(
                twin, name, tree_map(lambda x: function(x) if isinstance(x, torch.Tensor) else x, attribute)
            )
        return twin

    return tree_map(replace, value)


def _holds_tensors(leaf: Any) -> bool:
    if not hasattr(leaf, "__dict__") or isinstance(leaf, nn.Module | type):
        return False
    return any(isinstance(x, torch.Tensor) for x in tree_leaves(list(vars(leaf).values())))


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors in nested containers, model outputs and distributions."""
    found: list[torch.Tensor] = []

    def collect(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    map_tensors(collect, value)
    return found


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor.cpu()


def _fresh_generator(value: Any) -> Any:
    # The user's keeps its state, and may be one of a GPU.
    return torch.Generator("cpu") if isinstance(value, torch.Generator) else value


def _untraceable(target: Target, error: Exception, paths: Mapping[nn.Module, str]) -> TraceError:
    frames = traceback.walk_tb(error.__traceback__)
    modules = [frame.f_locals["self"] for frame, _ in frames if "self" in frame.f_locals]
    inside = [paths[module] for module in modules if isinstance(module, nn.Module) and module in paths]
    where = f" in its module {inside[-1]!r}" if inside and inside[-1] else ""
    return TraceError(
        f"Cannot predict {target.component}.{target.method}: {type(error).__name__}{where}: {str(error).rstrip('.')}. "
        "Prediction runs it on tensors without values, so code that depends on values (`.item()`, a mask as an "
        "index) cannot be followed. Pass that component's result to the pipeline already computed (for a text "
        "encoder `prompt_embeds`), do without the component (`safety_checker=None`), or measure on the GPU."
    )
