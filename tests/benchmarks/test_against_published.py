"""What the published measurements are taken for; predictions of them take minutes and are a benchmark."""

import pytest

from benchmarks import against_published
from benchmarks.against_published import Guess, counting_allocated, predicted, published, scoped, summaries, why_not
from tests.profiles import MIB, activity, component, device, profile, stage
from vramtune import catalog
from vramtune.machine.gpus import find_gpu

ROWS = {row.id: row for row in published()}


def call():
    text, model = component("text_encoder", [MIB]), component("transformer", [4 * MIB])
    loop = stage("transformer", 20, activity(model, [0.5], activation_bytes=3 * MIB))
    return profile(device(), [text, model], [stage("text_encoder", 1, activity(text, [0.1])), loop])


def test_every_row_is_of_a_known_pipeline_on_a_known_card_or_says_why_it_is_not_predicted() -> None:
    models = {entry.name for entry in catalog.models()}
    reasons = {row.id: why_not(row) for row in ROWS.values()}
    assert len(ROWS) == 103
    for row in ROWS.values():
        assert row.value > 0
        if reasons[row.id] is None:
            assert row.call.model in models
            assert find_gpu(row.gpu)
            assert row.mode in against_published.MODES
    assert set(filter(None, reasons.values())) == {
        "card not named",
        "only the denoiser is offloaded",
        against_published.SAFETY_CHECKER,
    }


def test_iterations_a_second_are_seconds_of_one() -> None:
    row = ROWS["t20-sd15-A100-b4"]
    assert (row.scope, row.quantity, row.is_seconds) == ("step", "seconds", True)
    assert row.value == pytest.approx(1 / 13.12)
    assert dict(row.call.settings) == {"height": 512, "width": 512, "steps": 4, "batch": 4}


def test_a_scope_is_what_of_a_call_a_row_counts() -> None:
    whole = call()
    assert scoped(whole, "pipeline") is whole
    assert [each.num_iterations for each in scoped(whole, "denoise").stages] == [20]
    (forward,) = scoped(whole, "forward").stages
    assert (forward.num_iterations, forward.seconds) == (1, 0.5)
    assert [part.name for part in scoped(whole, "forward").components] == ["transformer"]
    assert [each.name for each in scoped(whole, "components:text_encoder").stages] == ["text_encoder"]


def test_allocated_is_what_segments_hold() -> None:
    (loop,) = scoped(counting_allocated(call()), "denoise").stages
    assert loop.activation_bytes == max(each.activation_bytes for each in loop.activities[0].segments)


def test_a_row_is_predicted_in_its_own_unit(monkeypatch) -> None:
    monkeypatch.setattr(against_published, "price", lambda followed, card: call())
    monkeypatch.setattr(against_published, "followed", lambda call: None)
    assert predicted(ROWS["t20-sd15-A100-b4"]).expected == pytest.approx(0.5)
    assert predicted(ROWS["dq-flux-s"]).expected == pytest.approx(10.1)
    assert predicted(ROWS["tao-cog5b-A100-weights"]).expected == pytest.approx(5 / 1024)


def test_the_summary_counts_what_can_be_trusted() -> None:
    rows = [ROWS[name] for name in ("dq-flux-s", "dq-flux-moff-s", "i2266-sd15-seq-3060")]
    guesses = [
        (row, Guess(expected=row.value * factor, low=row.value * low, high=row.value * 1.5))
        for row, factor, low in zip(rows, (1.1, 1.3, 9.0), (0.9, 1.2, 1.0), strict=True)
    ]
    found = {name: cells for name, *cells in summaries(guesses)}
    assert found["seconds"][:2] == ["2", "20%"]
    assert found["seconds"][4:6] == ["50%", "50%"]
    assert "memory" not in found
