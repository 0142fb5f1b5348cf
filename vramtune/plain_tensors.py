"""The plain tensors that a weight consists of, and how to point them elsewhere.

A weight is a parameter or buffer of a module. Most are one plain tensor; a quantized one has several: wrappers
(torchao, optimum-quanto) are made of others, bitsandbytes and GGUF have classes of parameters with a state beside their
bytes. Profiler and runtime know plain tensors only: each has bytes of its own, and `.data` points it elsewhere while
it, the weight and whatever else has it stay the objects that they are.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from vramtune.errors import UsageError

NO_STATE = ("GGUFParameter",)
"""Classes of parameters that are their bytes and some facts: `diffusers/quantizers/gguf/utils.py`."""
QUANT_STATE = ("absmax", "code", "offset")
"""Tensors in a `QuantState`, and in the `state2` in it, where statistics are quantized too: `bitsandbytes/functional.py`."""
TABLE = "code"
"""One of these that bitsandbytes shares between weights, and keeps for those to come."""
OWN = "_vramtune_has_own_table"
"""Attribute of a `QuantState` whose table is its own by now."""
KIND = "_vramtune_kind"
"""Attribute of a tensor that stands for a parameter of another class: that class."""
PACKED_FOR_ONE = ("TinyGemm", "AWQ", "Marlin")
"""Begin the names of optimum-quanto's wrappers whose bytes are in the order of one device's kernels."""
INT8_STATE = ("CB", "SCB")
"""Tensors of an `Int8Params`, which are its layer's after the first call: `bitsandbytes/nn/modules.py`."""


class Attribute(NamedTuple):
    """Where an object has a plain tensor as an attribute."""

    holder: Any
    name: str

    @property
    def tensor(self) -> Any:
        """What is there now."""
        return getattr(self.holder, self.name, None)


class PlainTensor(NamedTuple):
    """A tensor with bytes of its own that a weight consists of."""

    tensor: torch.Tensor
    path: str
    """Name in the weight; empty where that is the tensor itself."""
    attributes: tuple[Attribute, ...] = ()
    """Where it is found; where none has it any more, the weight was changed."""
    followers: tuple[torch.Tensor, ...] = ()
    """Other tensors over the same bytes, and wrappers, which say on which device they are."""

    @property
    def is_replaced(self) -> bool:
        """Whether none of its attributes has this tensor any more."""
        return bool(self.attributes) and all(attribute.tensor is not self.tensor for attribute in self.attributes)

    def point_at(self, view: torch.Tensor) -> None:
        """Make it point at other bytes, and everything that follows it."""
        point_at(self.tensor, view)
        for follower in self.followers:
            if not is_wrapper(follower):
                point_at(follower, view)
            elif follower.device != view.device:
                _claim(follower, view.device)


def is_wrapper(tensor: torch.Tensor) -> bool:
    """Whether a tensor only stands for others and has no bytes itself."""
    return type(tensor) is not torch.Tensor and is_traceable_wrapper_subclass(tensor)


def value_of(tensor: torch.Tensor) -> torch.Tensor:
    """A plain tensor over the same bytes, whatever class of parameter it is."""
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.data


def address_of(tensor: torch.Tensor) -> int:
    """Where a tensor's bytes begin."""
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.data_ptr()


def point_at(tensor: torch.Tensor, view: torch.Tensor) -> None:
    """Make a tensor with bytes of its own point at others; its identity, class and attributes stay."""
    with torch._C.DisableTorchFunctionSubclass():
        tensor.data = view


def _claim(wrapper: torch.Tensor, device: torch.device) -> None:
    """Have a wrapper say that it is on a device, where what it is made of is."""
    with torch._C.DisableTorchFunctionSubclass(), no_dispatch():
        wrapper.data = torch.Tensor._make_wrapper_subclass(
            type(wrapper), wrapper.size(), strides=wrapper.stride(), dtype=wrapper.dtype, device=device
        )


# ---------------------------------------------------------------------------------------------------
# What a weight consists of


def plain_tensors(weight: torch.Tensor, module: nn.Module) -> list[PlainTensor]:
    """The plain tensors of one of a module's parameters or buffers; that it has some was seen (`refuse_unknown`)."""
    if is_wrapper(weight):
        return list(_wrapped(weight, "", ()))
    kinds = _kinds(weight)
    if "Params4bit" in kinds:
        return [PlainTensor(weight, ""), *_states(getattr(weight, "quant_state", None), "quant_state")]
    if "Int8Params" in kinds:
        return _int8_tensors(weight, module)
    return [PlainTensor(weight, "")]


def own_tables(weight: torch.Tensor, made_like: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.detach) -> None:
    """Give a weight tensors of its own for those that it shares with others, so that it can be moved by itself."""
    for plain in _states(getattr(weight, "quant_state", None), "quant_state"):
        for holder, name in plain.attributes:
            if name == TABLE and not hasattr(holder, OWN):
                setattr(holder, name, made_like(plain.tensor))
                setattr(holder, OWN, True)


def _wrapped(wrapper: Any, path: str, around: tuple[torch.Tensor, ...]) -> Iterator[PlainTensor]:
    for name in wrapper.__tensor_flatten__()[0]:
        inner, inner_path = getattr(wrapper, name), f"{path}.{name}" if path else name
        if is_wrapper(inner):
            yield from _wrapped(inner, inner_path, (*around, wrapper))
        else:
            yield PlainTensor(inner, inner_path, (Attribute(wrapper, name),), (*around, wrapper))


def _states(state: Any, path: str) -> Iterator[PlainTensor]:
    """The tensors in a `QuantState`."""
    if state is None:
        return
    for name in QUANT_STATE:
        if isinstance(tensor := getattr(state, name, None), torch.Tensor):
            yield PlainTensor(tensor, f"{path}.{name}", (Attribute(state, name),))
    yield from _states(getattr(state, "state2", None), f"{path}.state2")


def _int8_tensors(weight: torch.Tensor, module: nn.Module) -> list[PlainTensor]:
    """Of an `Int8Params`; `CB` lies where the weight itself does."""
    found: list[PlainTensor] = []
    followers: list[torch.Tensor] = []
    for name in INT8_STATE:
        attributes = tuple(
            Attribute(holder, name) for holder in (weight, getattr(module, "state", None)) if holder is not None
        )
        tensor = next((attribute.tensor for attribute in attributes if attribute.tensor is not None), None)
        if tensor is None:
            continue
        if _lies_at(tensor) == _lies_at(weight):
            followers.append(tensor)
        else:
            found.append(PlainTensor(tensor, name, attributes))
    return [PlainTensor(weight, "", (), tuple(followers)), *found]


def _lies_at(tensor: torch.Tensor) -> tuple[int, int]:
    """Where a tensor's bytes begin, of one without any too."""
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset()) * tensor.element_size()


def _kinds(weight: torch.Tensor) -> set[str]:
    return {kind.__name__ for kind in getattr(weight, KIND, type(weight)).__mro__}


def rebuilt(weight: Any, twins: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """A wrapper like this one around the twins of what it is made of; of a weight that is no wrapper, its twin."""
    if not is_wrapper(weight):
        return twins(weight)
    names, facts = weight.__tensor_flatten__()
    inner = {name: rebuilt(getattr(weight, name), twins) for name in names}
    twin: torch.Tensor = type(weight).__tensor_unflatten__(inner, facts, weight.size(), weight.stride())
    twin.requires_grad_(False)
    if isinstance(weight, nn.Parameter):
        twin._is_param = True  # as `nn.Parameter` marks tensors of other classes
    return twin


# ---------------------------------------------------------------------------------------------------
# Refusals


def refuse_unknown(component: str, module: nn.Module) -> None:
    """Raise a `UsageError` for a weight that is not known to consist of plain tensors, or has none that could be moved."""
    for path, owner in module.named_modules():
        for name, weight in (*owner._parameters.items(), *owner._buffers.items()):
            if weight is None or type(weight) in (torch.Tensor, nn.Parameter):
                continue
            if (reason := _reason_against(weight, owner)) is not None:
                full = f"{path}.{name}" if path else name
                raise UsageError(f"Weight {full!r} of component {component!r} {reason}")


def _reason_against(weight: torch.Tensor, owner: nn.Module) -> str | None:
    """Why a weight cannot be moved, and what to do; None if it can."""
    kinds = _kinds(weight)
    if is_wrapper(weight):
        if type(weight).__name__.startswith(PACKED_FOR_ONE):
            return f"is a {type(weight).__name__}, packed for one device's kernels; {UNPACK}"
        inner = (plain.tensor for plain in plain_tensors(weight, owner))
        unknown = next(
            (t for t in inner if type(t) not in (torch.Tensor, nn.Parameter) or t.layout != torch.strided), None
        )
        return None if unknown is None else f"is made of a {type(unknown).__name__}; {LOAD_OTHERWISE}"
    if "Params4bit" in kinds:
        return _reason_against_4bit(weight)
    if "Int8Params" in kinds:
        return NOT_QUANTIZED if weight.dtype != torch.int8 else None
    if kinds.isdisjoint(NO_STATE):
        return f"is a {type(weight).__name__}, which is not known to consist of plain tensors; {LOAD_OTHERWISE}"
    return None


def _reason_against_4bit(weight: Any) -> str | None:
    if not weight.bnb_quantized or weight.quant_state is None:
        return NOT_QUANTIZED
    if getattr(weight.quant_state, "packing_format_for_cpu", False):
        return "was packed for the CPU by a call there. Call the component's state_dict() once, which unpacks it."
    return None


LOAD_OTHERWISE = (
    "load the component unquantized, or by bitsandbytes, GGUF, torchao or optimum-quanto, whose weights are known."
)
UNPACK = (
    "put an nn.Parameter of its weight_qbits_tensor() or weight_qbytes_tensor() in its place, or quantize to 8 bits."
)
NOT_QUANTIZED = (
    "is not quantized yet: bitsandbytes does that when a layer is first moved. Move the component once (`.to('cpu')`), or "
    "load it with a quantization config."
)
