"""A prediction says what PyTorch takes: what it caches where a plan leaves room, and small tensors that share segments."""

from dataclasses import replace

import pytest

from tests.profiles import MIB, activity, component, device, profile, stage
from vramtune.schema import NO_SMALL_TENSORS, InArenas, Profile, SmallTensors, Stage
from vramtune.tuner.search import choose_plan

KIB = 2**10
CACHED_MIB = (20, 60, 100)


def decoding(
    *, pipeline_bytes: int = 0, small_tensors: SmallTensors = NO_SMALL_TENSORS, encoder_bytes: int = 0
) -> Profile:
    """An encoder, and 100 MiB of weights with a decode that gets through with 200 MiB of activations."""
    encoder, vae = component("text_encoder", [encoder_bytes]), component("vae", [50 * MIB, 50 * MIB])
    decode = replace(
        activity(vae, [0.1, 0.1], method="decode", activation_bytes=200 * MIB),
        cached_bytes=tuple(mib * MIB for mib in CACHED_MIB),
        small_tensors=small_tensors,
    )
    encode = stage("text_encoder", 1, activity(encoder, [0.1]))
    once = replace(stage("vae.decode", 1, decode), pipeline_bytes=pipeline_bytes)
    return profile(device(kernels="cuda"), [encoder, vae], [encode, once] if encoder_bytes else [once])


@pytest.mark.parametrize(
    ("budget_mib", "cached_mib"), [(300, 0), (319, 0), (320, 20), (359, 20), (360, 60), (400, 100), (4000, 100)]
)
def test_as_much_is_cached_as_a_plan_leaves_room_for(budget_mib, cached_mib):
    plan = choose_plan(decoding(), budget_mib * MIB)
    (found,) = plan.estimate.stages
    assert (found.kept_bytes, found.activation_bytes) == (100 * MIB, 200 * MIB)
    assert found.cached_bytes == cached_mib * MIB
    assert plan.estimate.peak_bytes == (300 + cached_mib) * MIB
    assert plan.estimate.low.peak_bytes <= plan.estimate.needed_bytes == 300 * MIB
    assert plan.estimate.peak_bytes <= plan.estimate.high.peak_bytes


def test_what_is_cached_keeps_no_weights_out():
    assert choose_plan(decoding(), 300 * MIB).estimate.moved_bytes == 0


def calls(*activities: tuple[int, tuple[int, ...], InArenas | None]) -> Stage:
    vae = component("vae", [MIB])
    return stage(
        "vae.decode",
        1,
        *(
            replace(activity(vae, [0.1], activation_bytes=least), cached_bytes=cached, in_arenas=in_arenas)
            for least, cached, in_arenas in activities
        ),
    )


def test_of_several_calls_the_one_that_caches_most_counts():
    assert calls((100, (10, 30), None), (80, (25, 60), None)).cached_bytes == (5, 10, 30, 40)


def test_in_arenas_it_is_what_is_cached_beside_them():
    in_arenas = InArenas((60, 20), 90, (4, 8))
    both = calls((100, (10, 30), in_arenas), (50, (25, 60), None))
    assert (both.planned_activation_bytes, both.cached_bytes) == (90, (4, 8))


@pytest.mark.parametrize(
    ("pipeline_kib", "encoder_kib", "own_segments", "free_kib", "planned_mib", "predicted_mib"),
    [
        (600, 0, 0, 0, 2, 2),
        (1025, 0, 3, 2000, 2, 2),  # which may be one large tensor
        (0, 300, 1, 300, 2, 0),  # in the activations' own
        (0, 300, 1, 299, 2, 2),
        (600, 300, 3, 900, 4, 0),
        (600, 300, 3, 899, 4, 2),
        (
            600,
            300,
            1,
            900,
            4,
            2,
        ),  # what an earlier stage left lies in two segments, one of which is the activations' own
    ],
)
def test_small_tensors_share_segments(pipeline_kib, encoder_kib, own_segments, free_kib, planned_mib, predicted_mib):
    own = SmallTensors(own_segments * 2 * MIB - free_kib * KIB, own_segments * 2 * MIB)
    given = decoding(pipeline_bytes=pipeline_kib * KIB, small_tensors=own, encoder_bytes=encoder_kib * KIB)
    plan = choose_plan(given, (300 + planned_mib) * MIB)
    assert plan.estimate.moved_bytes == 0
    assert plan.estimate.peak_bytes == (300 + predicted_mib) * MIB
    less = choose_plan(given, (300 + planned_mib) * MIB - 1)
    assert less.estimate.moved_bytes > 0  # the search counts a segment for each
