from dataclasses import replace

from tests.profiles import MIB, activity, component, device, profile, stage
from tests.tuner.test_search import small
from vramtune.schema import Profile
from vramtune.tuner.frontier import trace_frontier
from vramtune.tuner.search import choose_plan


def reasons(given_profile: Profile, budget_bytes: int) -> str:
    return " ".join(choose_plan(given_profile, budget_bytes).reasons)


def test_methods_that_are_planned_apart_are_told_apart() -> None:
    vae = component("vae", [4 * MIB] * 4)
    encode = activity(vae, [0.1, 0.1], method="encode", layers=[0, 1])
    decode = activity(vae, [0.1, 0.1], method="decode", layers=[2, 3])
    stages = [stage("vae.encode", 1, encode), stage("vae.decode", 1, decode)]
    given = profile(device(), [vae], stages)
    said = reasons(given, trace_frontier(given).points[0].budget_bytes)
    assert "vae.encode is not resident" in said
    assert "vae.decode is not resident" in said


class TestExclusion:
    def test_is_named_as_what_makes_a_component_resident(self) -> None:
        said = reasons(replace(small(), excluded=("text_encoder",)), 250 * MIB)
        assert (
            "text_encoder is resident because the pipeline excludes it from offload: 80 MiB in every" in said
        )
        assert "transformer is not resident" in said

    def test_of_a_component_that_never_runs_is_named_too(self) -> None:
        extra = component("image_encoder", [30 * MIB])
        with_extra = replace(small(), components=(*small().components, extra), excluded=("image_encoder",))
        said = reasons(with_extra, 250 * MIB)
        assert "image_encoder is resident because the pipeline excludes it from offload: 30 MiB" in said
        assert "0.15 GiB of activations" in said

    def test_is_not_named_where_there_is_none(self) -> None:
        assert "excludes" not in reasons(replace(small(), excluded=("safety_checker",)), 250 * MIB)
