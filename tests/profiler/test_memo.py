import contextlib

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests import tiny_pipelines
from vramtune.profiler import predict, record
from vramtune.profiler.memo import memoised_children
from vramtune.profiler.tracker import Allocation, Tracker

MODE = FakeTensorMode(allow_non_fake_inputs=True)


@contextlib.contextmanager
def every_call_runs(component, tracker, mode):
    yield


def history(tape):
    """The tape with storages numbered as they appear."""
    numbers = {}
    return [
        (numbers.setdefault(entry.key, len(numbers)), entry.num_bytes)
        if isinstance(entry, Allocation)
        else entry
        for entry in tape
    ]


def traced(model, given, context):
    tracker = Tracker(weights={})
    with MODE:
        given = torch.empty(given)
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
def test_replayed_calls_write_what_running_them_would(parent, child, num_calls, num_runs):
    tape, outputs, num_real = traced(parent(child()), (4, 8), every_call_runs)
    again, same_outputs, num_memoised = traced(parent(child()), (4, 8), memoised_children)
    assert (again, same_outputs) == (tape, outputs)
    assert (num_real, num_memoised) == (num_calls, num_runs)


def test_children_have_their_own_forward_again():
    model = CallsPure(Pure())
    traced(model, (4, 8), memoised_children)
    assert "forward" not in vars(model.child)


@pytest.mark.parametrize(("tile", "num_frames"), [(None, 25), (16, 9)])
def test_a_video_vae_profiles_the_same_with_every_frame_traced(tile, num_frames, device, monkeypatch):
    def profile():
        pipe = tiny_pipelines.build("wan")
        if tile is not None:
            pipe.vae.enable_tiling(tile, tile, tile // 2, tile // 2)
        call = {"height": 32, "width": 32, "num_frames": num_frames, "max_sequence_length": 16}
        call["num_inference_steps"] = 1
        return predict.predict_profile(pipe, call_kwargs=call, device=device)

    memoised = profile()
    monkeypatch.setattr(record, "memoised_children", every_call_runs)
    assert profile() == memoised
