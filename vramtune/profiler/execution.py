"""One call of one component's method on fake tensors: what it did, written down."""

import gc
import itertools
import traceback
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, UnsupportedOperatorException

from vramtune.contract.tracing import masks_by_value
from vramtune.errors import TraceError
from vramtune.plain_tensors import plain_tensors
from vramtune.profiler.cuda_kernels import CudaKernels, temporaries
from vramtune.profiler.fakes import fake_like
from vramtune.profiler.known_values import LARGEST_TWIN_ELEMENTS, ComponentTracker, Questions
from vramtune.profiler.memo import memoised_children
from vramtune.profiler.tensor_trees import map_tensors, tensors_of, tensors_reached
from vramtune.profiler.tracker import Entry, Usage, Weight
from vramtune.schema import Kernels
from vramtune.tables import Tables, tables_kept_by


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ComponentMethod:
    """A component's method that is answered from traces."""

    component: str
    method: str
    module: nn.Module
    run: Callable[..., Any]
    """The method itself."""
    called: str | None
    """Path of the module whose call this is, and has begun; None where it is another method than `forward`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Execution:
    """One call of a component's method, on fake tensors."""

    component: str
    method: str
    weights: tuple[Weight, ...]
    """All the component's weights, as they were during the call: a pipeline may change their dtype."""
    tape: tuple[Entry, ...]
    usage: Usage
    outputs: Any
    deciding_values: dict[int, torch.Tensor]
    """Values of inputs that the code asked for, by the input's number: with others it may do something else."""
    left_behind: tuple[weakref.ref[torch.UntypedStorage], ...]
    """What it left elsewhere than in its outputs, for the pipeline to read: attention maps that are kept."""
    permitted: "Mapping[str, Execution]" = field(default_factory=dict)
    """The same call under permissions, by the name of each that changes something of this component."""


def trace_call(
    target: ComponentMethod,
    inputs: Any,
    mode: FakeTensorMode,
    *,
    is_known: Callable[[torch.Tensor], bool],
    kernels: Kernels = "cuda",
) -> Execution:
    """Run the method on fakes of its inputs, an (args, kwargs) pair; the component has fake weights already.

    `is_known` says whether an input has the values that it has in a real call; the method may ask for those.
    """
    weights = weights_of(target.module)
    tracker = ComponentTracker(weights, mode, *([temporaries] if kernels == "cuda" else []))
    args, kwargs = _fakes(inputs, tracker, mode, is_known)
    tracker.know(tensors_of((args, kwargs)))
    paths = {module: path for path, module in target.module.named_modules()}
    owners = {owner for weight in weights.values() for owner in weight.owners}
    if target.called is not None:  # that module's call began before this
        tracker.enter(target.called, owners)
    try:
        with ExitStack() as entered:
            entered.enter_context(torch.no_grad())
            entered.enter_context(mode)
            entered.enter_context(tracker.watch_modules(paths, owners))
            entered.enter_context(memoised_children(target.module, tracker, mode))
            entered.enter_context(tracker)
            entered.enter_context(Questions(tracker))
            entered.enter_context(masks_by_value(tracker.is_known))
            if kernels == "cuda":
                entered.enter_context(CudaKernels(tracker.is_known))
            entered.enter_context(tables_kept_by(SimpleNamespace(tables=Tables())))
            outputs = target.run(*args, **kwargs)
    except Exception as error:
        raise _trace_error(target, error, paths) from error
    given = tensors_of(inputs)
    deciding_values = {number: given[number].detach().clone() for number in sorted(tracker.deciding)}
    return Execution(
        component=target.component,
        method=target.method,
        weights=tuple(weights.values()),
        tape=tuple(tracker.tape),
        usage=tracker.usage,
        outputs=outputs,
        deciding_values=deciding_values,
        left_behind=tuple(map(weakref.ref, _left_behind(tracker, outputs))),
    )


def _fakes(
    inputs: Any, tracker: ComponentTracker, mode: FakeTensorMode, is_known: Callable[[torch.Tensor], bool]
) -> Any:
    """Fakes of the inputs; the tracker is told the values of those that are known, by the input's number."""
    numbers = itertools.count()

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        number = next(numbers)
        twin = fake_like(tensor, mode)
        if tensor.numel() <= LARGEST_TWIN_ELEMENTS and is_known(tensor):
            tracker.tell(twin, tensor, number)
        return twin

    return map_tensors(fake, inputs)


def _left_behind(tracker: ComponentTracker, outputs: Any) -> list[torch.UntypedStorage]:
    if not tracker.left_behind(tensors_reached(outputs)):
        return []
    gc.collect()  # what only a cycle keeps alive is not left for anyone
    return tracker.left_behind(tensors_reached(outputs))


def _trace_error(target: ComponentMethod, error: Exception, paths: Mapping[nn.Module, str]) -> TraceError:
    frames = list(traceback.walk_tb(error.__traceback__))
    modules = [frame.f_locals["self"] for frame, _ in frames if "self" in frame.f_locals]
    inside = [paths[module] for module in modules if isinstance(module, nn.Module) and module in paths]
    where = f" in its module {inside[-1]!r}" if inside and inside[-1] else ""
    lines = [(frame.f_code.co_filename, number) for frame, number in frames]
    theirs = [f"{Path(name).name}:{number}" for name, number in lines if not _is_machinery(name)]
    line = f", {theirs[-1]}" if theirs else ""
    if isinstance(error, UnsupportedOperatorException):
        return TraceError(
            f"Cannot predict {target.component}.{target.method}: {error}{where}{line} is a library's own operation, and does "
            "not say what its result looks like. Tell PyTorch first (`torch.library.register_fake`), use weights that need "
            "it not, or measure on the GPU."
        )
    return TraceError(
        f"Cannot predict {target.component}.{target.method}: {type(error).__name__}{where}{line}: "
        f"{str(error).rstrip('.')}. Prediction runs it on tensors without values; code that asks for values which only "
        "the weights decide (`.item()`, a mask as an index) cannot be followed. Compute that component's result "
        "beforehand and pass it to the pipeline (for a text encoder `prompt_embeds`), do without the component "
        "(`safety_checker=None`), or measure on the GPU."
    )


def _is_machinery(filename: str) -> bool:
    """Whether a line of this file only carries an operation out."""
    return Path(torch.__file__).parent in Path(filename).parents or Path(__file__).parent in Path(filename).parents


def weights_of(component: nn.Module) -> dict[int, Weight]:
    """The plain tensors of the component's parameters and buffers by storage (its `_cdata`), tied ones once."""
    owners: dict[torch.Tensor, list[str]] = {}
    names: dict[torch.Tensor, str] = {}
    buffers: set[torch.Tensor] = set()
    for path, module in component.named_modules():
        for name, weight in (*module._parameters.items(), *module._buffers.items()):
            if weight is None:
                continue
            for plain in plain_tensors(weight, module):
                owners.setdefault(plain.tensor, []).append(path)
                names.setdefault(plain.tensor, ".".join(filter(None, (path, name, plain.path))))
                if name in module._buffers:
                    buffers.add(plain.tensor)
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
