from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tuner.test_search import budget_between, with_or_without_exclusion
from vramtune.reports.reasons import sentence
from vramtune.schema import Reason, ReasonKind
from vramtune.tuner.problem import pose
from vramtune.tuner.search import choose_plan
from vramtune.units import GIB, MIB

SENTENCES = (
    (
        Reason(kind="permission_used", permission="vae_tiling"),
        "Uses 'vae_tiling', which you allowed: the output changes slightly.",
    ),
    (
        Reason(kind="permission_used", permission="vae_tiling", num_bytes={"smallest": 3 * GIB}),
        "Uses 'vae_tiling', which you allowed: the output changes slightly. Without it nothing fits in less than 3.00 GiB.",
    ),
    (
        Reason(kind="permission_used", permission="fp8_weights", seconds={"saves": 2.5}),
        "Uses 'fp8_weights', which you allowed: the output changes slightly. It saves 2.50 s of a call.",
    ),
    (Reason(kind="compute_bound"), "Compute sets the pace: copies are hidden behind it, or there are none."),
    (
        Reason(
            kind="copy_bound",
            stage="unet",
            num_bytes={"streamed": 3 * GIB},
            seconds={"copies": 0.4, "compute": 40.4, "exposed": 0.2},
        ),
        "Stage 'unet' waits longest for copies: it streams 3.00 GiB (400 ms of copying beside 40.4 s of compute) and "
        "loses 200 ms.",
    ),
    (
        Reason(
            kind="copy_bound",
            stage="text_encoder",
            num_bytes={"loaded": GIB},
            seconds={"copies": 0.1, "compute": 0.01, "exposed": 0.09},
        ),
        "Stage 'text_encoder' waits longest for copies: it loads 1.00 GiB (100 ms of copying beside 10 ms of compute) "
        "and loses 90 ms.",
    ),
    (
        Reason(kind="host_bound", stage="unet", seconds={"host": 44.0, "compute": 40.0, "exposed": 4.0}),
        "Stage 'unet' waits longest for the host, which takes 44.0 s to ask for its operations and copies beside 40.0 s of "
        "compute: it loses 4.00 s.",
    ),
    (
        Reason(
            kind="staging_bound",
            stage="unet",
            num_bytes={"staged": 8 * GIB},
            seconds={"staging": 1.0, "compute": 0.5, "exposed": 0.6},
        ),
        "Stage 'unet' waits longest for weights that are not page-locked: the host takes 1.00 s to stage 8.00 GiB beside "
        "500 ms of compute, and it loses 600 ms.",
    ),
    (
        Reason(
            kind="disk_bound",
            stage="unet",
            num_bytes={"read": 9 * GIB},
            seconds={"reading": 3.0, "compute": 0.5, "exposed": 2.6},
        ),
        "Stage 'unet' waits longest for its files, which do not fit the host's memory: 9.00 GiB are read in 3.00 s beside "
        "500 ms of compute, and it loses 2.60 s.",
    ),
    (
        Reason(kind="peak", stage="vae.decode", num_bytes={"weights": 2 * GIB, "others": 6 * GIB, "free": 32 * MIB}),
        "Stage 'vae.decode' needs most: 2.00 GiB of weights and slots, 6.00 GiB of activations, pipeline tensors, "
        "workspaces and context; 32 MiB are left.",
    ),
    (
        Reason(kind="excluded", component="safety_checker", num_bytes={"weights": GIB}),
        "safety_checker is resident because the pipeline excludes it from offload: 1.00 GiB in every stage.",
    ),
    (
        Reason(
            kind="not_resident",
            component="unet",
            stage="vae.decode",
            num_bytes={"missing": 3 * GIB, "over_budget": GIB},
            seconds={"exposed": 0.2},
        ),
        "unet is not resident: keeping the other 3.00 GiB of it would put stage 'vae.decode' 1.00 GiB over the budget; "
        "its stages wait 200 ms for copies.",
    ),
    (
        Reason(
            kind="not_resident",
            component="unet",
            stage="vae.decode",
            num_bytes={"missing": MIB, "over_budget": 0},
            seconds={"exposed": 0.0},
        ),
        "unet is not resident: keeping the other 1 MiB of it would fit, and save next to nothing; its stages wait 0 s "
        "for copies.",
    ),
    (Reason(kind="all_resident"), "Everything the call uses stays on the GPU: more memory would save nothing."),
    (
        Reason(kind="more_memory", seconds={"one_gib": 0.106, "unlimited": 0.106}),
        "One GiB more could save at most 106 ms; unlimited memory 106 ms.",
    ),
)


@pytest.mark.parametrize(("reason", "words"), SENTENCES, ids=[words for _, words in SENTENCES])
def test_sentence_of_a_reason(reason, words):
    assert sentence(reason) == words


def test_every_kind_of_reason_has_a_sentence_here():
    assert {reason.kind for reason, _ in SENTENCES} == set(get_args(ReasonKind))


@settings(max_examples=30, deadline=None)
@given(with_or_without_exclusion(), st.floats(0, 1))
def test_every_reason_of_a_plan_has_all_that_its_sentence_needs(profile, fraction):
    plan = choose_plan(profile, budget_between(pose(profile), fraction))
    assert all(sentence(reason).endswith(".") for reason in plan.reasons)
