"""The arguments of a pipeline's call: checked, completed for tracing, and as a profile keeps them."""

import inspect
from collections.abc import Mapping
from types import MappingProxyType

from vramtune.contract import Pipeline
from vramtune.contract.tracing import call_parameters
from vramtune.errors import UsageError
from vramtune.schema import Scalar, Workload

DEFAULT_PROMPT = "a photo of an astronaut riding a horse on the moon"
NOTHING: Mapping[str, Mapping[str, object]] = MappingProxyType({})
"""No methods to call first."""
LARGEST = 2**63 - 1
"""What PyTorch and NumPy count with, and saved profiles hold."""
_NEEDS_VALUES = (None, "pil", "np")
"""Output types whose last step reads pixels; as tensors (`pt`) they cost the device the same."""


def arguments_to_trace(pipe: Pipeline, method: object, call_kwargs: object) -> dict[str, object]:
    """The arguments with a prompt, an output of tensors, and the device on which calls are traced.

    Raises `UsageError` for a method that the pipeline lacks and for names that the method lacks.
    """
    if not isinstance(method, str) or not callable(getattr(pipe, method, None)):
        raise UsageError(f"{type(pipe).__name__} has no method {method!r}.")
    accepted = call_parameters(pipe, method)
    kwargs = _named(call_kwargs)
    if "prompt" in accepted and not kwargs.keys() & {"prompt", "prompt_embeds"}:
        kwargs["prompt"] = DEFAULT_PROMPT
    if "device" in accepted:
        kwargs["device"] = "cpu"
    try:
        inspect.Signature(list(accepted.values())).bind(**kwargs)
    except TypeError as error:
        raise UsageError(
            f"{type(pipe).__name__} does not accept these arguments: {error}. It accepts {', '.join(accepted)}."
        ) from error
    if "output_type" in accepted and kwargs.get("output_type") in _NEEDS_VALUES:
        kwargs["output_type"] = "pt"
    return kwargs


def calls_to_trace_first(pipe: Pipeline, first: object) -> dict[str, dict[str, object]]:
    """The same for the methods that are called first, with their arguments by name; the same errors."""
    if not isinstance(first, Mapping):
        raise UsageError(
            f'`first` are methods by name with their arguments, such as {{"invert": {{"image": image}}}}; got {first!r}.'
        )
    return {method: arguments_to_trace(pipe, method, kwargs) for method, kwargs in first.items()}


def _named(call_kwargs: object) -> dict[str, object]:
    """A copy of the arguments; a `UsageError` for what is no mapping from names, and for numbers beyond all arrays."""
    if not isinstance(call_kwargs, Mapping) or not all(isinstance(name, str) for name in call_kwargs):
        raise UsageError(f'`call_kwargs` are arguments by name, such as {{"height": 768}}; got {call_kwargs!r}.')
    for name, value in call_kwargs.items():
        if isinstance(value, int) and abs(value) > LARGEST:
            raise UsageError(f"{name} is too large: more than {LARGEST}.")
    return dict(call_kwargs)


def workload_of(method: str, call_kwargs: Mapping[str, object]) -> Workload:
    """The method and its arguments as the user gave them, in values that JSON holds."""
    return Workload(call_kwargs={name: _json_value(value) for name, value in call_kwargs.items()}, method=method)


def _json_value(value: object) -> Scalar | list[Scalar]:
    if isinstance(value, list | tuple) and all(_is_scalar(item) for item in value):
        return list(value)
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()  # JSON holds no lone surrogates
    return value if _is_scalar(value) else f"<{type(value).__name__}>"  # type: ignore[return-value]


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, str | bool | int | float)
