"""The stock diffusers modes, predicted from the same profile: a steady call of each.

Costs are read from the sources of diffusers 0.42 and accelerate 1.15. Everything stock that is not streamed
copies tensor by tensor from or to ordinary memory and blocks the host, so that it adds to the compute seconds.
What a mode leaves out here (hook overhead on the host, fragmentation by weights that come and go) would make it
slower or larger, never faster or smaller.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from vramtune.errors import BudgetError
from vramtune.schema import Activity, Comparison, Component, Device, Layer, ModeEstimate, Plan, Profile
from vramtune.tuner.search import choose_plan

PLAN_MODE = "vramtune"


@dataclass(frozen=True, slots=True)
class _Chunk:
    """What a mode moves as one, and the compute of one visit."""

    num_bytes: int
    num_tensors: int
    seconds: float
    activation_bytes: int


@dataclass(frozen=True, slots=True)
class _Cost:
    """One call of one component under a mode that keeps nothing between calls."""

    seconds: float
    peak_bytes: int
    """Weights and activations, without pipeline and context."""
    copied_in_bytes: int
    copied_out_bytes: int = 0


def stock_modes(profile: Profile, budget_bytes: int | None = None) -> tuple[ModeEstimate, ...]:
    """Every stock mode; `fits` is None where no budget is given."""
    return (
        _resident(profile, budget_bytes),
        _model_offload(profile, budget_bytes),
        _stateless(profile, budget_bytes, "group offload, block, stream", _block_stream),
        _stateless(profile, budget_bytes, "group offload, block", _block),
        _stateless(profile, budget_bytes, "group offload, leaf, stream", _leaf_stream),
        _stateless(profile, budget_bytes, "group offload, leaf", _leaf),
        _stateless(profile, budget_bytes, "sequential offload", _sequential),
    )


def plan_mode(plan: Plan) -> ModeEstimate:
    """The plan as a row beside the stock modes."""
    return ModeEstimate(
        mode=PLAN_MODE,
        fits=plan.estimate.peak_bytes <= plan.budget_bytes,
        peak_bytes=plan.estimate.peak_bytes,
        seconds=plan.estimate.seconds,
        compute_seconds=sum(stage.compute_seconds for stage in plan.estimate.stages),
        copied_in_bytes=plan.estimate.moved_bytes,
        copied_out_bytes=0,
    )


def compare_modes(profile: Profile, budget_bytes: int, *, allow: tuple[str, ...] = ()) -> Comparison:
    """The stock modes, the plan where one fits, and the bound, under one budget."""
    modes = stock_modes(profile, min(budget_bytes, profile.device.usable_bytes))
    try:
        plan = choose_plan(profile, budget_bytes, allow=allow)
    except BudgetError:
        return Comparison(budget_bytes=budget_bytes, bound_seconds=None, modes=modes)
    return Comparison(
        budget_bytes=budget_bytes,
        bound_seconds=plan.estimate.bound_seconds,
        modes=(plan_mode(plan), *modes),
    )


def _compute_seconds(profile: Profile) -> float:
    return sum(stage.num_iterations * stage.seconds for stage in profile.stages)


def _base_bytes(device: Device) -> int:
    return device.context_bytes + device.workspace_bytes


def _resident(profile: Profile, budget_bytes: int | None) -> ModeEstimate:
    """`pipe.to("cuda")`: every weight, used or not, stays."""
    weights = sum(component.weight_bytes for component in profile.components)
    peak = weights + max(stage.activation_bytes + stage.glue_bytes for stage in profile.stages)
    seconds = _compute_seconds(profile)
    return _mode(profile, budget_bytes, "all resident", _Cost(seconds, peak, 0))


def _model_offload(profile: Profile, budget_bytes: int | None) -> ModeEstimate:
    """`enable_model_cpu_offload`: whole components, pageable both ways, one predecessor evicted.

    A component that starts evicts only the one before it in the chain; those outside the chain evict nothing.
    At the end of the call all return to ordinary memory, the excluded ones to come back at once.
    """
    device, chain = profile.device, [c for c in profile.offload_sequence if _has(profile, c)]
    previous = {after: before for before, after in pairwise(chain)}
    excluded = {c.name for c in profile.components if c.name in profile.excluded and c.name not in chain}
    present = set(excluded)
    moved = _Cost(_compute_seconds(profile), 0, 0)
    for stage in profile.stages:
        for _ in range(stage.num_iterations):
            for activity in stage.activities:
                name = activity.component
                if name in previous and previous[name] in present:
                    present.remove(previous[name])
                    moved = _evict(moved, device, profile.component(previous[name]))
                if name not in present:
                    present.add(name)
                    moved = _load(moved, device, profile.component(name))
                held = sum(profile.component(c).weight_bytes for c in present)
                peak = held + activity.activation_bytes + stage.glue_bytes
                moved = _Cost(
                    moved.seconds, max(moved.peak_bytes, peak), moved.copied_in_bytes, moved.copied_out_bytes
                )
    for name in present:
        moved = _evict(moved, device, profile.component(name))
    for name in excluded:
        moved = _load(moved, device, profile.component(name))
    return _mode(profile, budget_bytes, "model offload", moved)


def _has(profile: Profile, name: str) -> bool:
    return any(component.name == name for component in profile.components)


def _load(so_far: _Cost, device: Device, component: Component) -> _Cost:
    seconds = _pageable_in(device, component.weight_bytes, component.num_tensors)
    copied = so_far.copied_in_bytes + component.weight_bytes
    return _Cost(so_far.seconds + seconds, so_far.peak_bytes, copied, so_far.copied_out_bytes)


def _evict(so_far: _Cost, device: Device, component: Component) -> _Cost:
    seconds = _readback(device, component.weight_bytes, component.num_tensors)
    copied = so_far.copied_out_bytes + component.weight_bytes
    return _Cost(so_far.seconds + seconds, so_far.peak_bytes, so_far.copied_in_bytes, copied)


def _pageable_in(device: Device, num_bytes: int, num_tensors: int) -> float:
    return num_bytes / device.pageable_copy_bytes_per_second + num_tensors * device.copy_latency_seconds


def _readback(device: Device, num_bytes: int, num_tensors: int) -> float:
    return num_bytes / device.readback_bytes_per_second + num_tensors * device.copy_latency_seconds


def _pinned_in(device: Device, num_bytes: int, num_tensors: int) -> float:
    rate = device.pinned_copy_bytes_per_second * device.overlap_fraction
    return num_bytes / rate + num_tensors * device.copy_latency_seconds


class _CallCost(Protocol):
    def __call__(self, device: Device, component: Component, activity: Activity) -> _Cost: ...


def _stateless(profile: Profile, budget_bytes: int | None, mode: str, call_cost: _CallCost) -> ModeEstimate:
    """A mode that keeps nothing between calls: the sum over all calls."""
    seconds, peak, copied_in, copied_out = 0.0, 0, 0, 0
    for stage in profile.stages:
        seconds += stage.num_iterations * stage.glue_seconds
        for activity in stage.activities:
            cost = call_cost(profile.device, profile.component(activity.component), activity)
            num_calls = stage.num_iterations * activity.num_calls
            seconds += num_calls * cost.seconds
            copied_in += num_calls * cost.copied_in_bytes
            copied_out += num_calls * cost.copied_out_bytes
            peak = max(peak, cost.peak_bytes + stage.glue_bytes)
    return _mode(profile, budget_bytes, mode, _Cost(seconds, peak, copied_in, copied_out))


def _mode(profile: Profile, budget_bytes: int | None, mode: str, cost: _Cost) -> ModeEstimate:
    peak = cost.peak_bytes + _base_bytes(profile.device)
    return ModeEstimate(
        mode=mode,
        fits=None if budget_bytes is None else peak <= budget_bytes,
        peak_bytes=peak,
        seconds=cost.seconds,
        compute_seconds=_compute_seconds(profile),
        copied_in_bytes=cost.copied_in_bytes,
        copied_out_bytes=cost.copied_out_bytes,
    )


def _sequential(device: Device, component: Component, activity: Activity) -> _Cost:
    """accelerate's `cpu_offload`: each layer in before its forward, dropped after it."""
    layers = _layer_chunks(component, activity)
    seconds = sum(c.seconds + _pageable_in(device, c.num_bytes, c.num_tensors) for c in layers)
    return _Cost(seconds, _peak(activity, layers, 0), sum(c.num_bytes for c in layers))


def _leaf(device: Device, component: Component, activity: Activity) -> _Cost:
    """Group offload by leaf without streams: as sequential, and each layer is copied back."""
    return _there_and_back(device, activity, _layer_chunks(component, activity), 0, 0)


def _block(device: Device, component: Component, activity: Activity) -> _Cost:
    """Group offload by block without streams: the rest of the component in and out around each call."""
    root_bytes, root_tensors = _root_of_blocks(component)
    return _there_and_back(device, activity, _block_chunks(component, activity), root_bytes, root_tensors)


def _there_and_back(
    device: Device, activity: Activity, chunks: list[_Chunk], root_bytes: int, root_tensors: int
) -> _Cost:
    moves = [(root_bytes, root_tensors), *((c.num_bytes, c.num_tensors) for c in chunks)]
    copies = sum(_pageable_in(device, *move) + _readback(device, *move) for move in moves)
    total = sum(num_bytes for num_bytes, _ in moves)
    return _Cost(copies + sum(c.seconds for c in chunks), _peak(activity, chunks, root_bytes), total, total)


def _leaf_stream(device: Device, component: Component, activity: Activity) -> _Cost:
    """Group offload by leaf with a stream; a `decode` is never traced, so its copies block."""
    chunks = _layer_chunks(component, activity)
    if activity.method == "forward":
        return _prefetched(device, activity, chunks, 0, 0)
    seconds = sum(c.seconds + _pinned_in(device, c.num_bytes, c.num_tensors) for c in chunks)
    return _Cost(seconds, _peak(activity, chunks, 0), sum(c.num_bytes for c in chunks))


def _block_stream(device: Device, component: Component, activity: Activity) -> _Cost:
    """Group offload by block with a stream; the rest of the component never streams and is copied back."""
    root_bytes, root_tensors = _root_of_blocks(component)
    chunks = _block_chunks(component, activity)
    return _prefetched(device, activity, chunks, root_bytes, root_tensors)


def _prefetched(
    device: Device, activity: Activity, chunks: list[_Chunk], root_bytes: int, root_tensors: int
) -> _Cost:
    """One group ahead, with the host waiting for the copy before each group and for the kernels after it."""
    moving = [c for c in chunks if c.num_bytes] or [_Chunk(0, 0, 0.0, 0)]
    clock = _pageable_in(device, root_bytes, root_tensors)
    ready = clock + _pinned_in(device, moving[0].num_bytes, moving[0].num_tensors)
    following = iter([*moving[1:], None])
    for chunk in chunks:
        if chunk.num_bytes:
            clock = max(clock, ready)
            after = next(following)
            ready = clock + (_pinned_in(device, after.num_bytes, after.num_tensors) if after else 0.0)
        clock += chunk.seconds
    clock += _readback(device, root_bytes, root_tensors)
    copied = root_bytes + sum(c.num_bytes for c in moving)
    return _Cost(clock, _peak(activity, _with_next(chunks), root_bytes), copied, root_bytes)


def _with_next(chunks: list[_Chunk]) -> list[_Chunk]:
    """Each chunk beside the bytes of the next one that moves: both are on the device while it computes."""
    beside, following = [], 0
    for chunk in reversed(chunks):
        num_bytes = chunk.num_bytes + following
        beside.append(_Chunk(num_bytes, chunk.num_tensors, chunk.seconds, chunk.activation_bytes))
        following = chunk.num_bytes or following
    return beside


def _layer_chunks(component: Component, activity: Activity) -> list[_Chunk]:
    layers = ((component.layers[s.layer], s) for s in activity.segments)
    return [
        _Chunk(layer.weight_bytes, layer.num_tensors, s.seconds, s.activation_bytes) for layer, s in layers
    ]


def _block_chunks(component: Component, activity: Activity) -> list[_Chunk]:
    """Visits of blocks in execution order; stretches outside of blocks carry no weights."""
    sizes = {
        block: _size_of(layer for layer in component.layers if layer.block == block)
        for block in _blocks(component)
    }
    chunks: list[_Chunk] = []
    last: str | None = None
    for segment in activity.segments:
        block = component.layers[segment.layer].block
        if chunks and block == last:
            before = chunks.pop()
            seconds = before.seconds + segment.seconds
            peak = max(before.activation_bytes, segment.activation_bytes)
            chunks.append(_Chunk(before.num_bytes, before.num_tensors, seconds, peak))
        else:
            num_bytes, num_tensors = sizes[block] if block else (0, 0)
            chunks.append(_Chunk(num_bytes, num_tensors, segment.seconds, segment.activation_bytes))
        last = block
    return chunks


def _blocks(component: Component) -> list[str]:
    return list(dict.fromkeys(layer.block for layer in component.layers if layer.block))


def _size_of(layers: Iterable[Layer]) -> tuple[int, int]:
    sizes = [(layer.weight_bytes, layer.num_tensors) for layer in layers]
    return sum(num_bytes for num_bytes, _ in sizes), sum(num_tensors for _, num_tensors in sizes)


def _root_of_blocks(component: Component) -> tuple[int, int]:
    """Bytes and tensors outside of blocks, unused ones included: they move with every call."""
    num_bytes, num_tensors = _size_of(layer for layer in component.layers if layer.block)
    return component.weight_bytes - num_bytes, component.num_tensors - num_tensors


def _peak(activity: Activity, chunks: list[_Chunk], root_bytes: int) -> int:
    """Weights and activations at the worst moment, with what the allocator reserves beyond."""
    beyond = activity.activation_bytes - max((s.activation_bytes for s in activity.segments), default=0)
    return root_bytes + beyond + max(c.num_bytes + c.activation_bytes for c in chunks)
