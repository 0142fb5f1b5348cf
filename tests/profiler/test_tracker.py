import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import flex_attention

from vramtune.profiler.execution import weights_of
from vramtune.profiler.known_values import ComponentTracker
from vramtune.profiler.record import flex_attention_executed
from vramtune.profiler.tracker import Allocation, Start
from vramtune.schema import Work

MODE = FakeTensorMode()


def tracked(run, tracker=None):
    tracker = tracker or ComponentTracker({}, MODE)
    with torch.no_grad(), MODE, tracker:
        run()
    return tracker


def live_and_peak(tracker):
    live = peak = 0
    for entry in tracker.tape:
        if isinstance(entry, Allocation):
            live += entry.num_bytes
            peak = max(peak, live)
    return live, peak


def test_a_chain_of_operations_holds_two_results_at_a_time():
    def chain():
        tensor = torch.empty(1024, dtype=torch.float32)
        for _ in range(10):
            tensor = tensor + 1

    assert live_and_peak(tracked(chain)) == (0, 2 * 4096)


def test_storage_is_rounded_to_512_bytes():
    kept = []
    assert live_and_peak(tracked(lambda: kept.append(torch.empty(3)))) == (512, 512)


def test_views_and_writes_in_place_take_no_memory():
    def reuse():
        tensor = torch.empty(64, 64)
        view = tensor.t()[3:5]
        view.add_(1)
        tensor[0] = 2

    # In-place assignment of a number makes a scalar on the way; nothing of the tensor's size is made.
    assert live_and_peak(tracked(reuse))[1] <= 64 * 64 * 4 + 512


def test_a_storage_lives_as_long_as_its_last_view():
    def keep_a_row():
        row = torch.empty(1024)[:1]
        del row

    kept = []
    assert live_and_peak(tracked(keep_a_row))[0] == 0
    assert live_and_peak(tracked(lambda: kept.append(torch.empty(1024)[:1])))[0] == 4096


def test_inputs_and_weights_take_no_memory_but_their_use_is_recorded():
    with MODE:
        model, given = nn.Sequential(nn.Linear(8, 8, bias=False)), torch.empty(2, 8)
    tracker = ComponentTracker(weights_of(model), MODE)
    tracker.know([given])
    with tracker.watch_modules({model[0]: "0"}, {"0"}):
        tracked(lambda: model(given), tracker)
    assert live_and_peak(tracker) == (0, 512)
    assert tracker.usage.weights == {("0.weight", ("0",))}
    assert [entry for entry in tracker.tape if isinstance(entry, Start)] == [Start("0")]


def test_a_weight_used_outside_its_module_starts_that_layer():
    with MODE:
        model, given = nn.Sequential(nn.Linear(8, 8, bias=False)), torch.empty(2, 8)
    tracker = ComponentTracker(weights_of(model), MODE)
    tracked(lambda: nn.functional.linear(given, model[0].weight), tracker)
    assert Start("0") in tracker.tape
    assert tracker.usage.weights == {("0.weight", ())}


def test_hooks_are_removed_after_a_watched_module_fails():
    module = nn.Linear(2, 2)
    tracker = ComponentTracker({}, MODE)
    try:
        with tracker.watch_modules({module: "x"}, set()):
            module("no tensor")
    except TypeError:
        pass
    module(torch.ones(1, 2))
    assert list(tracker.usage.entered) == ["x"]
    assert tracker.stack == ()


def test_upsampling_which_has_a_kernel_of_its_own_makes_nothing_but_its_result():
    kept = []
    with MODE:
        image = torch.empty(1, 4, 16, 16)
    tracker = ComponentTracker({}, MODE)
    tracker.know([image])
    tracked(lambda: kept.append(nn.functional.interpolate(image, scale_factor=2, mode="nearest")), tracker)
    assert live_and_peak(tracker) == (4 * 4 * 32 * 32, 4 * 4 * 32 * 32)


def test_flex_attention_counts_what_it_does_without_being_compiled():
    """All scores at once, and two matrix products."""
    num_scores = 2 * 48 * 48

    def attend():
        query, key, value = torch.empty(3, 1, 2, 48, 16).unbind()  # [batch heads tokens channels]
        flex_attention.flex_attention(query, key, value, score_mod=lambda score, *position: score * 2)

    with flex_attention_executed():
        tracker = tracked(attend)
    assert live_and_peak(tracker)[1] > 2 * 4 * num_scores
    products = [entry.flops for entry in tracker.tape if isinstance(entry, Work) and entry.flops > 16 * num_scores]
    assert products == [2 * 16 * num_scores] * 2


def test_in_inference_mode_the_same_is_counted():
    def project():
        torch.nn.functional.linear(torch.empty(4, 8), torch.empty(16, 8)).softmax(dim=-1)

    def in_inference_mode():
        with torch.inference_mode():
            project()

    assert [e for e in tracked(in_inference_mode).tape if isinstance(e, Work)] == [
        e for e in tracked(project).tape if isinstance(e, Work)
    ]
