"""A pipeline's call as a trace, and the trace's price on a device: what needs the profiler and the prices."""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from vramtune.pricing.price import price
from vramtune.schema import Device, Profile

if TYPE_CHECKING:
    from vramtune.contract import Pipeline

NOTHING: Mapping[str, Mapping[str, object]] = MappingProxyType({})


def predict_profile(
    pipe: "Pipeline",
    *,
    method: str = "__call__",
    call_kwargs: Mapping[str, object],
    first: Mapping[str, Mapping[str, object]] = NOTHING,
    device: Device,
    allow: Collection[str] = (),
    on_call: Callable[[str], None] | None = None,
) -> Profile:
    """What one call of the pipeline would cost on a device, without that device and without weights.

    Arguments and errors are those of `profiler.follow.follow`.
    """
    from vramtune.profiler.follow import follow

    trace = follow(
        pipe, method=method, call_kwargs=call_kwargs, first=first, kernels=device.kernels, allow=allow, on_call=on_call
    )
    return price(trace, device)
