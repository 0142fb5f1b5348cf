"""The arguments of a pipeline's call: checked, completed for tracing, and as a profile keeps them."""

import inspect
from collections.abc import Mapping

from diffusers import DiffusionPipeline

from vramtune.errors import UsageError
from vramtune.schema import Scalar, Workload

DEFAULT_PROMPT = "a photo of an astronaut riding a horse on the moon"
_NEEDS_VALUES = (None, "pil", "np")
"""Output types whose last step reads pixels; as tensors (`pt`) they cost the device the same."""


def arguments_to_trace(pipe: DiffusionPipeline, call_kwargs: Mapping[str, object]) -> dict[str, object]:
    """The arguments with a prompt and an output of tensors; raises `UsageError` for names that the call lacks."""
    accepted = inspect.signature(type(pipe).__call__)
    kwargs = dict(call_kwargs)
    if "prompt" in accepted.parameters and not kwargs.keys() & {"prompt", "prompt_embeds"}:
        kwargs["prompt"] = DEFAULT_PROMPT
    try:
        accepted.bind(pipe, **kwargs)
    except TypeError as error:
        names = ", ".join(list(accepted.parameters)[1:])
        raise UsageError(
            f"{type(pipe).__name__} does not accept these arguments: {error}. It accepts {names}."
        ) from error
    if "output_type" in accepted.parameters and kwargs.get("output_type") in _NEEDS_VALUES:
        kwargs["output_type"] = "pt"
    return kwargs


def workload_of(call_kwargs: Mapping[str, object]) -> Workload:
    """The arguments as the user gave them, in values that JSON holds."""
    return Workload(call_kwargs={name: _json_value(value) for name, value in call_kwargs.items()})


def _json_value(value: object) -> Scalar | list[Scalar]:
    if isinstance(value, list | tuple) and all(_is_scalar(item) for item in value):
        return list(value)
    return value if _is_scalar(value) else f"<{type(value).__name__}>"  # type: ignore[return-value]


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, str | bool | int | float)
