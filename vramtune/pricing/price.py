"""A trace's price on a device: the profile."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import chain, combinations

from vramtune.errors import UsageError
from vramtune.pricing.stages import Estimator, build_stages
from vramtune.schema import Component, Device, Profile, Stage, Trace, Variant
from vramtune.uncollected import uncollected


def price(trace: Trace, device: Device, *, permissions: Collection[str] | None = None) -> Profile:
    """What a traced call costs on a device: bytes by the allocator's rules, seconds by a roofline. Needs no torch.

    `device` has the host's pace too (`operation_seconds`). Under `permissions` the price is given as well; left out, they
    are all under which the call was followed. Raises a `UsageError` for a device with other kernels than those that the
    trace was made for.
    """
    if device.kernels != trace.kernels:
        raise UsageError(
            f"This trace of {trace.pipeline_class} is of {trace.kernels} kernels; {device.name} runs {device.kernels} "
            "kernels, which allocate otherwise. Trace the pipeline for that device."
        )
    known = (
        trace.permissions if permissions is None else tuple(name for name in permissions if name in trace.permissions)
    )
    with uncollected():
        return _priced(trace, device, known)


def _priced(trace: Trace, device: Device, permissions: tuple[str, ...]) -> Profile:
    estimator = Estimator(trace, device)
    stages = _stages(trace, estimator)
    return Profile(
        pipeline_class=trace.pipeline_class,
        workload=trace.workload,
        device=device,
        components=trace.components,
        stages=stages,
        permissions=permissions,
        variants=tuple(_variants(trace, estimator, stages, permissions)),
        offload_sequence=trace.offload_sequence,
        excluded=trace.excluded,
        versions=trace.versions,
    )


def _stages(
    trace: Trace, estimator: Estimator, *, permissions: Collection[str] = (), others: Sequence[Component] = ()
) -> tuple[Stage, ...]:
    """The call's stages, as it is or under permissions, some components being `others` then."""
    in_float8 = {component.name for component in others}

    def under_permissions(index: int) -> int:
        """Of which one at the most changes something of a component."""
        call = trace.calls[index]
        known = (name for name in permissions if name != "fp8_weights" or call.component in in_float8)
        return next((call.permitted[name] for name in known if name in call.permitted), index)

    built = [build_stages(run, [under_permissions(turn.call) for turn in run.turns], estimator) for run in trace.runs]
    if trace.num_steps is None:
        return built[0]
    few, more = (run.num_steps or 0 for run in trace.runs)
    return drawn_out(built, followed=(few, more), num_steps=trace.num_steps)


def drawn_out(calls: Sequence[Sequence[Stage]], *, followed: tuple[int, int], num_steps: int) -> tuple[Stage, ...]:
    """The stages of a call of so many steps, from those of the two that were followed, which are alike.

    What a count of steps changes is linear in it: iterations (Heun's scheduler makes two calls a step but for the
    last), and what the pipeline holds of all steps.
    """
    few, more = calls
    first, second = followed

    def at(low: int, high: int) -> int:
        return high + max(round((num_steps - second) * (high - low) / (second - first)), 0)

    return tuple(
        replace(
            after,
            num_iterations=at(before.num_iterations, after.num_iterations),
            pipeline_bytes=at(before.pipeline_bytes, after.pipeline_bytes),
        )
        for before, after in zip(few, more, strict=True)
    )


def _variants(
    trace: Trace, estimator: Estimator, stages: tuple[Stage, ...], permissions: Collection[str]
) -> Iterator[Variant]:
    """The same call under each set of permissions: VAE tiling if that changes a peak, float8 if a component can be so."""
    tiled = _stages(trace, estimator, permissions=("vae_tiling",))
    saves = [stage.activation_bytes for stage in tiled] != [stage.activation_bytes for stage in stages]
    ways = ["vae_tiling"] * saves + ["fp8_weights"] * bool(trace.in_float8)
    ways = [way for way in ways if way in permissions]
    for allowed in chain.from_iterable(combinations(ways, number + 1) for number in range(len(ways))):
        others = trace.in_float8 if "fp8_weights" in allowed else ()
        yield Variant(
            permissions=allowed, stages=_stages(trace, estimator, permissions=allowed, others=others), components=others
        )
