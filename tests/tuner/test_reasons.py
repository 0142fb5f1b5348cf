from dataclasses import replace

from tests.profiles import MIB, activity, component, device, profile, stage
from tests.tuner.test_search import small
from vramtune.schema import Profile, Reason, ReasonKind
from vramtune.tuner.frontier import trace_frontier
from vramtune.tuner.search import choose_plan


def reasons(given_profile: Profile, budget_bytes: int, kind: ReasonKind) -> list[Reason]:
    return [reason for reason in choose_plan(given_profile, budget_bytes).reasons if reason.kind == kind]


def test_methods_that_are_planned_apart_are_told_apart() -> None:
    vae = component("vae", [4 * MIB] * 4)
    encode = activity(vae, [0.1, 0.1], method="encode", layers=[0, 1])
    decode = activity(vae, [0.1, 0.1], method="decode", layers=[2, 3])
    stages = [stage("vae.encode", 1, encode), stage("vae.decode", 1, decode)]
    given = profile(device(), [vae], stages)
    smallest = trace_frontier(given).points[0].budget_bytes
    named = [reason.component for reason in reasons(given, smallest, "not_resident")]
    assert named == ["vae.encode", "vae.decode"]


def test_the_peak_is_made_of_weights_and_others_and_what_stays_free() -> None:
    plan = choose_plan(small(), 250 * MIB)
    (peak,) = (reason for reason in plan.reasons if reason.kind == "peak")
    assert peak.num_bytes["weights"] + peak.num_bytes["others"] == plan.estimate.peak_bytes
    assert peak.num_bytes["free"] == plan.budget_bytes - plan.estimate.peak_bytes
    assert peak.stage in [stage.name for stage in plan.stages]


def test_all_resident_is_said_where_more_memory_would_save_nothing() -> None:
    plan = choose_plan(small(), small().device.usable_bytes)
    assert [reason.kind for reason in plan.reasons] == ["compute_bound", "peak", "all_resident"]


class TestExclusion:
    def test_is_named_as_what_makes_a_component_resident(self) -> None:
        given = replace(small(), excluded=("text_encoder",))
        (reason,) = reasons(given, 250 * MIB, "excluded")
        assert (reason.component, reason.num_bytes) == ("text_encoder", {"weights": 80 * MIB})
        assert "transformer" in [r.component for r in reasons(given, 250 * MIB, "not_resident")]

    def test_of_a_component_that_never_runs_is_named_too(self) -> None:
        extra = component("image_encoder", [30 * MIB])
        given = replace(small(), components=(*small().components, extra), excluded=("image_encoder",))
        (reason,) = reasons(given, 250 * MIB, "excluded")
        assert (reason.component, reason.num_bytes) == ("image_encoder", {"weights": 30 * MIB})
        (peak,) = reasons(given, 250 * MIB, "peak")
        assert peak.num_bytes["others"] == 150 * MIB

    def test_is_not_named_where_there_is_none(self) -> None:
        assert not reasons(replace(small(), excluded=("safety_checker",)), 250 * MIB, "excluded")
