"""The stock diffusers modes, predicted from the same profile: a steady call of each.

Costs are read from diffusers 0.42 (`DiffusionPipeline.enable_model_cpu_offload` and `.enable_sequential_cpu_offload`,
`hooks/group_offloading.py`: `ModuleGroup`, `GroupOffloadingHook`, `LazyPrefetchGroupOffloadingHook`) and accelerate 1.15
(`hooks.py`: `CpuOffload`, `AlignDevicesHook`). Everything stock that is not streamed copies tensor by tensor from or to
ordinary memory and blocks the host, so that it adds to the compute seconds. What is left out here (hook overhead on the
host) would make a mode slower, never faster.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from vramtune.schema import Activity, Component, Device, Extreme, Layer, ModeEstimate, Profile, Segment, Stage, Weights
from vramtune.tuner.extremes import ENDS, profile_at
from vramtune.tuner.passing import Sizes, all_tensors, passing_bytes, staying_bytes, tensor_bytes

SEQUENTIAL_OPERATIONS = 20
"""Host time of a tensor that sequential offload moves, in eager operations: published calls say 0.2 ms (SD 1.5) and
0.9 ms (SDXL on Colab's host), where an operation takes 22 to 60 microseconds."""
GROUP_OPERATIONS = 1.5
"""The same in group offload with a stream (`benchmarks/host_overhead.py`: 21 to 32 microseconds on a host that takes
some 20 for an operation)."""
RESIDENT, SEQUENTIAL = "all resident", "sequential offload"
BLOCK_STREAM, LEAF_STREAM = "group offload, block, stream", "group offload, leaf, stream"
OF_A_STREAM, OF_BLOCKS = (BLOCK_STREAM, LEAF_STREAM), (BLOCK_STREAM, "group offload, block")


@dataclass(frozen=True, slots=True)
class _Chunk:
    """What a mode moves as one, and the compute of one visit: while it is there, and after it has gone."""

    weights: Weights
    seconds: float
    activation_bytes: int
    after_seconds: float = 0.0
    after_activation_bytes: int = 0
    tensors: Sizes = ()
    """Bytes of each of its weights' tensors."""


@dataclass(frozen=True, slots=True)
class _Cost:
    """What some of a call takes under a mode; costs that are added follow one another."""

    seconds: float = 0.0
    peak_bytes: int = 0
    """Weights and activations, without context and workspaces."""
    moved_bytes: int = 0
    moved_back_bytes: int = 0

    def __add__(self, other: "_Cost") -> "_Cost":
        return _Cost(
            self.seconds + other.seconds,
            max(self.peak_bytes, other.peak_bytes),
            self.moved_bytes + other.moved_bytes,
            self.moved_back_bytes + other.moved_back_bytes,
        )

    def __mul__(self, times: int) -> "_Cost":
        return _Cost(times * self.seconds, self.peak_bytes, times * self.moved_bytes, times * self.moved_back_bytes)


_CallCost = Callable[[Device, Component, Activity], _Cost]
_BlocksCost = Callable[[Device, Activity, list[_Chunk]], _Cost]


def stock_modes(
    profile: Profile,
    budget_bytes: int | None = None,
    *,
    ram_bytes: int | None = None,
    permissions: tuple[str, ...] = (),
) -> tuple[ModeEstimate, ...]:
    """Every stock mode under these permissions; `fits` is None where no budget is given, `ram_bytes` for what the host has.

    Pipelines without an offload sequence, such as modular ones, have no model offload.
    """
    profile = profile.under(permissions)
    low, high = (_costs(profile_at(profile, end)) for end in ENDS)
    compute_seconds = _compute_seconds(profile)
    host_bytes = {mode: _host_bytes(profile, mode) for mode in low}
    fits_host = {mode: ram_bytes is None or taken <= ram_bytes for mode, taken in host_bytes.items()}
    return tuple(
        ModeEstimate(
            mode=mode,
            fits=None if budget_bytes is None else fits_host[mode] and cost.peak_bytes <= budget_bytes,
            peak_bytes=cost.peak_bytes,
            seconds=cost.seconds,
            compute_seconds=compute_seconds,
            moved_bytes=cost.moved_bytes,
            moved_back_bytes=cost.moved_back_bytes,
            host_bytes=host_bytes[mode],
            permissions=permissions,
            low=_extreme(low[mode]),
            high=_extreme(high[mode], _cached_bytes(profile, mode)),
            is_narrow=budget_bytes is not None
            and fits_host[mode]
            and cost.peak_bytes <= budget_bytes < high[mode].peak_bytes,
        )
        for mode, cost in _costs(profile).items()
    )


def _host_bytes(profile: Profile, mode: str) -> int:
    """What a mode's weights take of the host from the second call on.

    Model offload, and group offload without a stream, bring weights back into ordinary memory, also those that came out of
    mapped files; with a stream they are copied into page-locked memory first (`cpu_param_dict`). Sequential offload drops
    its copies, and files stay mapped.
    """
    if mode == RESIDENT:
        return 0
    num_bytes = sum(component.weights.num_bytes for component in profile.components)
    if mode == SEQUENTIAL:
        num_bytes -= sum(min(component.file_bytes, component.weights.num_bytes) for component in profile.components)
    return num_bytes


def _extreme(cost: _Cost, cached_bytes: int = 0) -> Extreme:
    return Extreme(seconds=cost.seconds, peak_bytes=cost.peak_bytes + cached_bytes)


def _costs(profile: Profile) -> dict[str, _Cost]:
    """By mode, with context and workspaces."""
    # sequential offload leaves the buffers of all components on the device
    buffer_bytes = sum(component.buffers.allocated_bytes for component in profile.components)
    costs = {
        RESIDENT: _resident(profile),
        **({"model offload": _model_offload(profile)} if profile.offload_sequence else {}),
        BLOCK_STREAM: _stateless(profile, _block_stream),
        "group offload, block": _stateless(profile, _block),
        LEAF_STREAM: _stateless(profile, _leaf_stream),
        "group offload, leaf": _stateless(profile, _leaf),
        SEQUENTIAL: _stateless(profile, _sequential, held_bytes=buffer_bytes),
    }
    fixed_bytes = profile.device.context_bytes + profile.device.workspace_bytes
    fixed_bytes += sum(component.computed_bytes for component in profile.components)
    return {mode: replace(cost, peak_bytes=cost.peak_bytes + fixed_bytes) for mode, cost in costs.items()}


def _cached_bytes(profile: Profile, mode: str) -> int:
    """What PyTorch's allocator keeps, where it has room, beyond what a mode gets through in."""
    if not profile.device.takes_segments:
        return 0
    activities = [activity for stage in profile.stages for activity in stage.activities]
    cached = max(a.activation_bytes + max(a.cached_bytes, default=0) for a in activities) - max(
        a.activation_bytes for a in activities
    )
    if mode == "model offload":  # weights come to lie in segments in which activations were
        return cached + max((stage.activation_bytes for stage in profile.stages[:-1]), default=0)
    if mode in OF_BLOCKS:
        loose = ([layer for layer in component.layers if layer.block is None] for component in profile.components)
        cached += max(_root_bytes(profile.device, layers) for layers in loose)
    if mode in OF_A_STREAM:
        own = dict.fromkeys((component.name for component in profile.components), 0)
        for activity in activities:
            component = profile.component(activity.component)
            if mode == LEAF_STREAM:
                chunks = _layer_chunks(component, activity, _all_weights)
            else:
                chunks = _block_chunks(component, activity.segments)
            own[component.name] = max(own[component.name], _stream_bytes(chunks, is_ahead=True))
        return cached + sum(own.values()) - max(own.values())  # each component has a stream
    return cached


def _compute_seconds(profile: Profile) -> float:
    return sum(stage.num_iterations * stage.seconds for stage in profile.stages)


def _resident(profile: Profile) -> _Cost:
    """`pipe.to("cuda")`: every weight, used or not, stays."""
    weights = sum(_staying_bytes(profile.device, component) for component in profile.components)
    peak = weights + max(stage.activation_bytes + stage.pipeline_bytes for stage in profile.stages)
    return _Cost(_compute_seconds(profile), peak)


def _model_offload(profile: Profile) -> _Cost:
    """`enable_model_cpu_offload`: whole components, pageable both ways, one predecessor evicted.

    A component that starts evicts only the one before it in the chain; those outside the chain evict nothing.
    At the end of the call all return to ordinary memory, the excluded ones to come back at once.
    """
    names = {component.name for component in profile.components}
    chain = [name for name in profile.offload_sequence if name in names]
    previous = {after: before for before, after in pairwise(chain)}
    excluded = {c.name for c in profile.components if c.name in profile.excluded and c.name not in chain}
    device, present = profile.device, set(excluded)
    cost = _Cost(_compute_seconds(profile))
    for stage in profile.stages:
        cost += _offloaded_iteration(profile, stage, previous, present)
        if stage.num_iterations > 1:  # who is present at the end of an iteration is so at the end of each
            cost += _offloaded_iteration(profile, stage, previous, present) * (stage.num_iterations - 1)
    for name in present:
        cost += _out(device, profile.component(name).weights)
    for name in excluded:
        cost += _in(device, profile.component(name).weights)
    return cost


def _offloaded_iteration(profile: Profile, stage: Stage, previous: dict[str, str], present: set[str]) -> _Cost:
    """Copies and peak of one iteration under model offload; `present` is brought up to date."""
    device, cost = profile.device, _Cost()
    for activity in stage.activities:
        name = activity.component
        if name in previous and previous[name] in present:
            present.remove(previous[name])
            cost += _out(device, profile.component(previous[name]).weights)
        if name not in present:
            present.add(name)
            cost += _in(device, profile.component(name).weights)
        held = sum(_staying_bytes(device, profile.component(c)) for c in present)
        cost += _Cost(peak_bytes=held + activity.activation_bytes + stage.pipeline_bytes)
    return cost


def _staying_bytes(device: Device, component: Component) -> int:
    """What all weights of a component take of the device; those that the call does not use as if they were one piece."""
    num_bytes = component.weights.allocated_bytes
    if not device.takes_segments:
        return num_bytes
    used = [layer.weights for layer in component.layers]
    unused_bytes = num_bytes - sum(weights.allocated_bytes for weights in used)
    return staying_bytes(all_tensors(used)) + max(unused_bytes, 0)


def _in(device: Device, weights: Weights) -> _Cost:
    return _Cost(_pageable_in(device, weights), moved_bytes=weights.num_bytes)


def _out(device: Device, weights: Weights) -> _Cost:
    return _Cost(_readback(device, weights), moved_back_bytes=weights.num_bytes)


def _pageable_in(device: Device, weights: Weights) -> float:
    latency = weights.num_tensors * device.copy_latency_seconds
    return weights.num_bytes / device.pageable_copy_bytes_per_second + latency


def _readback(device: Device, weights: Weights) -> float:
    latency = weights.num_tensors * device.copy_latency_seconds
    return weights.num_bytes / device.readback_bytes_per_second + latency


def _pinned_in(device: Device, weights: Weights) -> float:
    rate = device.pinned_copy_bytes_per_second * device.overlap_fraction
    return weights.num_bytes / rate + weights.num_tensors * device.copy_latency_seconds


def _stateless(profile: Profile, call_cost: _CallCost, *, held_bytes: int = 0) -> _Cost:
    """A mode that keeps no parameters between calls: the sum over all calls."""
    total = _Cost()
    for stage in profile.stages:
        total += _Cost(stage.num_iterations * stage.pipeline_seconds)
        for activity in stage.activities:
            cost = call_cost(profile.device, profile.component(activity.component), activity)
            total += cost * (stage.num_iterations * activity.num_calls)
            total += _Cost(peak_bytes=held_bytes + cost.peak_bytes + stage.pipeline_bytes)
    return total


def _sequential(device: Device, component: Component, activity: Activity) -> _Cost:
    """accelerate's `cpu_offload`: each layer's parameters in before its forward, dropped after it."""
    chunks = _layer_chunks(component, activity, _parameters)
    seconds = _compute(chunks) + sum(_pageable_in(device, chunk.weights) for chunk in chunks)
    num_tensors = sum(chunk.weights.num_tensors for chunk in chunks)
    seconds += SEQUENTIAL_OPERATIONS * device.operation_seconds * num_tensors
    # on the stream of the activations, in whose segments weights lie where they find room
    return _Cost(seconds, _together_bytes(activity, chunks), sum(chunk.weights.num_bytes for chunk in chunks))


def _leaf(device: Device, component: Component, activity: Activity) -> _Cost:
    """Group offload by leaf without streams: as sequential, with buffers, and each layer is copied back."""
    return _there_and_back(device, activity, _layer_chunks(component, activity, _all_weights))


def _there_and_back(device: Device, activity: Activity, chunks: list[_Chunk]) -> _Cost:
    copies = sum(_pageable_in(device, chunk.weights) + _readback(device, chunk.weights) for chunk in chunks)
    copied = sum(chunk.weights.num_bytes for chunk in chunks)
    return _Cost(copies + _compute(chunks), _peak(device, activity, chunks), copied, copied)


def _leaf_stream(device: Device, component: Component, activity: Activity) -> _Cost:
    """Group offload by leaf with a stream; a `decode` is never traced, so its copies block."""
    chunks = _layer_chunks(component, activity, _all_weights)
    if activity.method == "forward":
        return _prefetched(device, activity, chunks)
    seconds = _compute(chunks) + sum(_pinned_in(device, chunk.weights) for chunk in chunks)
    return _Cost(seconds, _peak(device, activity, chunks), sum(chunk.weights.num_bytes for chunk in chunks))


def _block(device: Device, component: Component, activity: Activity) -> _Cost:
    """Group offload by block without streams."""
    return _in_shells(device, component, activity, _there_and_back)


def _block_stream(device: Device, component: Component, activity: Activity) -> _Cost:
    """Group offload by block with a stream."""
    return _in_shells(device, component, activity, _prefetched)


def _in_shells(device: Device, component: Component, activity: Activity, blocks_cost: _BlocksCost) -> _Cost:
    """Block by block within each shell; what is in no block comes in and goes back around the shell's call.

    That never streams. Its buffers move twice and lie on the device twice: with their modules, and once more from
    a list that still holds the tensors that `module.to` replaced.
    """
    total = _Cost()
    for shell, run in groupby(activity.segments, key=lambda s: component.layers[s.layer].shell):
        loose = [layer for layer in component.layers if layer.shell == shell and layer.block is None]
        root = sum((layer.weights + layer.buffers for layer in loose), Weights())
        cost = blocks_cost(device, activity, _block_chunks(component, tuple(run)))
        total += cost
        total += _in(device, root)
        root_bytes = _root_bytes(device, loose)
        total += replace(_out(device, root), peak_bytes=cost.peak_bytes + root_bytes)
    return total


def _root_bytes(device: Device, loose: list[Layer]) -> int:
    """What the layers of a shell that are in no block take of the device, buffers twice."""
    all_weights = [each for layer in loose for each in (layer.weights, layer.buffers)]
    if device.takes_segments:
        return staying_bytes(all_tensors(all_weights))
    return sum(weights.allocated_bytes for weights in all_weights)


def _prefetched(device: Device, activity: Activity, chunks: list[_Chunk]) -> _Cost:
    """One group ahead, with the host waiting for the copy before each group and for the kernels after it."""
    moving = [chunk.weights for chunk in chunks if chunk.weights.num_tensors]
    following = iter([*moving[1:], Weights()])
    host, computed, ready = 0.0, 0.0, _pinned_in(device, moving[0]) if moving else 0.0
    for chunk in chunks:
        moves = chunk.weights.num_tensors
        if moves:
            host = max(host, ready) + GROUP_OPERATIONS * device.operation_seconds * moves
            ready = host + _pinned_in(device, next(following))
        computed = max(computed, host) + chunk.seconds
        host = computed if moves else host
        computed += chunk.after_seconds
    return _Cost(computed, _peak(device, activity, chunks, is_ahead=True), sum(weights.num_bytes for weights in moving))


def _with_next(chunks: list[_Chunk]) -> list[_Chunk]:
    """Each chunk beside the weights of the next one that moves: both are on the device while it computes."""
    beside, following = [], Weights()
    for chunk in reversed(chunks):
        after = chunk.after_activation_bytes + following.allocated_bytes
        beside.append(replace(chunk, weights=chunk.weights + following, after_activation_bytes=after))
        following = chunk.weights if chunk.weights.num_tensors else following
    return beside


def _compute(chunks: list[_Chunk]) -> float:
    return sum(chunk.seconds + chunk.after_seconds for chunk in chunks)


def _parameters(layer: Layer) -> Weights:
    return layer.parameters


def _all_weights(layer: Layer) -> Weights:
    return layer.weights


def _layer_chunks(component: Component, activity: Activity, weights_of: Callable[[Layer], Weights]) -> list[_Chunk]:
    weights = list(map(weights_of, component.layers))
    tensors = list(map(tensor_bytes, weights))
    return [
        _Chunk(
            weights[s.layer],
            s.layer_seconds,
            s.layer_activation_bytes,
            s.after_seconds,
            s.after_activation_bytes,
            tensors[s.layer],
        )
        for s in activity.segments
    ]


def _block_chunks(component: Component, segments: tuple[Segment, ...]) -> list[_Chunk]:
    """Visits of blocks in execution order; stretches outside of blocks carry no weights."""
    chunks = []
    layers: dict[str | None, list[Weights]] = {}
    for layer in component.layers:
        if layer.block:
            layers.setdefault(layer.block, []).append(layer.weights)
    blocks = {block: (sum(weights, Weights()), all_tensors(weights)) for block, weights in layers.items()}
    nothing: tuple[Weights, Sizes] = Weights(), ()
    for block, run in groupby(segments, key=lambda s: component.layers[s.layer].block):
        stretch, (weights, tensors) = list(run), blocks.get(block, nothing)
        peak = max(segment.activation_bytes for segment in stretch)
        seconds = sum(s.seconds for s in stretch)
        chunks.append(_Chunk(weights, seconds, peak, tensors=tensors))
    return chunks


def _peak(device: Device, activity: Activity, chunks: list[_Chunk], *, is_ahead: bool = False) -> int:
    """Weights and activations at the worst moment; `is_ahead` where a chunk's weights come before those of the last go.

    PyTorch's CUDA allocator keeps segments until memory runs out, so that of each both take the most that they ever do.
    """
    if device.takes_segments:
        return activity.activation_bytes + _stream_bytes(chunks, is_ahead=is_ahead)
    return _together_bytes(activity, _with_next(chunks) if is_ahead else chunks)


def _together_bytes(activity: Activity, chunks: list[_Chunk]) -> int:
    """Weights and activations that share what is reserved, at the worst moment."""
    beyond = activity.activation_bytes - max((s.activation_bytes for s in activity.segments), default=0)
    moments = (max(c.weights.allocated_bytes + c.activation_bytes, c.after_activation_bytes) for c in chunks)
    return beyond + max(moments, default=0)  # a call may use no layer


def _stream_bytes(chunks: list[_Chunk], *, is_ahead: bool) -> int:
    """What the weights of one call take in segments that have nothing else."""
    return passing_bytes(tuple(chunk.tensors for chunk in chunks if chunk.tensors), is_ahead=is_ahead)
