import contextlib
import itertools

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests import tiny_pipelines
from vramtune.profiler import execution
from vramtune.profiler.known_values import ComponentTracker
from vramtune.profiler.memo import memoised_children
from vramtune.profiler.record import record_runs
from vramtune.profiler.tracker import Allocation
from vramtune.units import MIB

MODE = FakeTensorMode(allow_non_fake_inputs=True)


@contextlib.contextmanager
def every_call_runs(component, tracker, mode):
    yield


def history(tape):
    """The tape with storages numbered as they appear."""
    numbers = {}
    return [
        (numbers.setdefault(entry.key, len(numbers)), entry.num_bytes) if isinstance(entry, Allocation) else entry
        for entry in tape
    ]


def traced(model, shape, context):
    tracker = ComponentTracker({}, MODE)
    with MODE:
        given = torch.empty(shape)
    tracker.know([given])
    with torch.no_grad(), MODE, context(model, tracker, MODE), tracker:
        output = model(given)
    return history(tracker.tape), [type(output)], model.child.num_runs


class Child(nn.Module):
    """Counts how often it really runs."""

    def __init__(self):
        super().__init__()
        self.num_runs = 0

    def forward(self, *args, **kwargs):
        self.num_runs += 1
        return self.work(*args, **kwargs)


class Parent(nn.Module):
    def __init__(self, child):
        super().__init__()
        self.child = child


class Pure(Child):
    def work(self, x):
        return (x * 2 + 1).relu(), x[1:]


class CallsPure(Parent):
    def forward(self, x):
        outputs = []
        for _ in range(5):
            y, view = self.child(x)
            outputs.append(y + view.sum())
        return torch.stack(outputs)


class Cached(Child):
    """Keeps the last input in a list and a dict of its caller's, as causal convolutions do."""

    def work(self, x, cache, index, state):
        y = x + 1 if cache[index[0]] is None else torch.cat([cache[index[0]], x])
        cache[index[0]] = x.clone()
        index[0] += 1
        state["last"] = y[:2]
        return y.clone()


class CallsCached(Parent):
    def forward(self, x):
        cache, outputs, state = [None, None], [], {}
        for _ in range(6):
            index = [0]
            outputs += [self.child(x * 1, cache, index, state).sum() for _ in cache]
            assert index == [2]
        return torch.stack([*outputs, state["last"].sum()])


class Secretive(Child):
    """Keeps a tensor where nobody sees it."""

    def work(self, x):
        self.kept = x * 3
        return x + 1


class CallsSecretive(Parent):
    def forward(self, x):
        for _ in range(4):
            x = self.child(x)
        return x


@pytest.mark.parametrize(
    ("parent", "child", "num_calls", "num_runs"),
    [(CallsPure, Pure, 5, 1), (CallsCached, Cached, 12, 4), (CallsSecretive, Secretive, 4, 4)],
)
def test_repeated_calls_write_the_tape_that_running_them_writes(parent, child, num_calls, num_runs):
    tape, outputs, num_real = traced(parent(child()), (4, 8), every_call_runs)
    again, same_outputs, num_memoised = traced(parent(child()), (4, 8), memoised_children)
    assert (again, same_outputs) == (tape, outputs)
    assert (num_real, num_memoised) == (num_calls, num_runs)


def test_children_have_their_own_forward_afterwards():
    model = CallsPure(Pure())
    traced(model, (4, 8), memoised_children)
    assert "forward" not in vars(model.child)


class DecodingPipeline(DiffusionPipeline):
    """Decodes its latents, and does nothing else."""

    def __init__(self, vae):
        super().__init__()
        self.register_modules(vae=vae)

    def __call__(self, latents):
        return self.vae.decode(latents, return_dict=False)[0]


def traced_decode(latents, tile, monkeypatch, context):
    """The tape and the usage of a video VAE's decode, and how often its decoder really ran."""
    vae = tiny_pipelines.build("wan").vae
    if tile is not None:
        vae.enable_tiling(tile, tile, tile // 2, tile // 2)
    num_runs, decoder = itertools.count(), type(vae.decoder)
    decode = decoder.forward  # of the class, which the copy that is followed shares
    monkeypatch.setattr(decoder, "forward", lambda *args, **kw: (next(num_runs), decode(*args, **kw))[1])
    monkeypatch.setattr(execution, "memoised_children", context)
    calls_kwargs = [{"latents": torch.zeros(latents)}]
    (recording,) = record_runs(DecodingPipeline(vae), calls_kwargs, largest_real_bytes=MIB, on_call=lambda name: None)
    monkeypatch.setattr(decoder, "forward", decode)
    (call,) = recording.calls
    return history(call.execution.tape), call.execution.usage, next(num_runs)


@pytest.mark.parametrize(
    ("tile", "latents", "num_decodes", "num_runs"),
    [(None, (1, 16, 5, 2, 2), 5, 3), (16, (1, 16, 2, 1, 4), 4 * 2, 2 * 2)],
    ids=["5 frames", "4 tiles of 2 frames, 3 alike"],
)
def test_a_video_vae_has_the_same_tape_with_every_frame_traced(tile, latents, num_decodes, num_runs, monkeypatch):
    memoised = traced_decode(latents, tile, monkeypatch, memoised_children)
    unabridged = traced_decode(latents, tile, monkeypatch, every_call_runs)
    assert memoised[:2] == unabridged[:2]
    assert (memoised[2], unabridged[2]) == (num_runs, num_decodes)
