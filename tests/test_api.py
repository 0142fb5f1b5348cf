"""The front door on a real tiny pipeline."""

from types import SimpleNamespace

import pytest

import vramtune
from tests import tiny_pipelines
from vramtune import BudgetError, UnknownNameError, UsageError
from vramtune.units import GIB


@pytest.fixture(scope="module")
def profile() -> vramtune.Profile:
    return vramtune.profile(
        tiny_pipelines.build("flux"), call_kwargs=tiny_pipelines.CALL["flux"], gpu="RTX 4060", progress=False
    )


def test_a_profile_names_pipeline_device_and_call(profile) -> None:
    assert profile.pipeline_class == "FluxPipeline"
    assert profile.device.name == "RTX 4060"
    assert profile.workload.call_kwargs["height"] == 32
    assert [stage.name for stage in profile.stages] == [
        "text_encoder",
        "text_encoder_2",
        "transformer",
        "vae.decode",
    ]


def test_progress_goes_to_standard_error_or_to_who_asks(capsys) -> None:
    pipe, told = tiny_pipelines.build("sd15"), []
    vramtune.profile(pipe, call_kwargs=tiny_pipelines.CALL["sd15"], gpu="4090", on_call=told.append)
    assert told == ["text_encoder", "unet", "vae.decode"]
    assert capsys.readouterr().err == ""
    vramtune.profile(pipe, call_kwargs=tiny_pipelines.CALL["sd15"], gpu="4090")
    captured = capsys.readouterr()
    assert "Tracing" in captured.err
    assert captured.out == ""


def test_everything_follows_from_the_profile(profile) -> None:
    plan = vramtune.plan(profile, 8)
    assert plan.estimate.peak_bytes <= plan.budget_bytes <= 8 * GIB
    assert vramtune.compare(profile, 8).modes[0].seconds == plan.estimate.seconds
    assert vramtune.frontier(profile).points[-1].seconds == pytest.approx(plan.estimate.seconds)
    assert vramtune.timeline(profile, plan).memory[-1].end_seconds == pytest.approx(
        plan.estimate.seconds, rel=1e-3
    )


def test_a_tuned_pipeline_is_a_table_of_stages_and_is_compared_as_it_is(profile) -> None:
    plan = vramtune.plan(profile, 4)
    tuned = vramtune.Tuned(profile, plan, SimpleNamespace(measured=None, overrun_bytes={}))
    assert list(tuned.to_frame().stage) == [stage.name for stage in plan.stages]
    assert tuned.compare().plan.seconds == plan.estimate.seconds


def test_one_permission_may_be_given_by_its_name(profile) -> None:
    assert vramtune.plan(profile, 8, allow="vae_tiling").permissions == ()
    with pytest.raises(UnknownNameError, match="int4"):
        vramtune.plan(profile, 8, allow="int4")


@pytest.mark.parametrize("vram_gb", [0, -1, float("nan"), "8", 80])
def test_bad_budgets_are_refused(profile, vram_gb) -> None:
    with pytest.raises(UsageError):
        vramtune.plan(profile, vram_gb)


def test_a_budget_below_the_context_says_what_would_do(profile) -> None:
    with pytest.raises(BudgetError) as raised:
        vramtune.plan(profile, 0.1)
    assert (
        vramtune.plan(profile, raised.value.smallest_bytes / GIB).estimate.peak_bytes
        <= raised.value.smallest_bytes
    )


def test_what_is_no_pipeline_is_refused() -> None:
    with pytest.raises(UsageError, match="Expected a diffusers pipeline; got str"):
        vramtune.profile("sdxl", gpu="4090", progress=False)


def test_profiles_and_plans_print_as_one_line(profile) -> None:
    calls = "text_encoder, text_encoder_2, transformer, vae.decode"
    assert repr(profile) == f"<Profile of FluxPipeline on RTX 4060, predicted: {calls}>"
    printed = str(vramtune.plan(profile, 4))
    assert printed.startswith("<Plan for FluxPipeline in 4.00 GiB of RTX 4060, predicted: peak ")
    assert len(printed) < 120


def test_what_is_no_profile_is_refused() -> None:
    for ask in (vramtune.plan, vramtune.compare):
        with pytest.raises(UsageError, match=r"Expected a Profile; got str\. `vramtune\.profile` makes one"):
            ask("profile.json", 8)
    with pytest.raises(UsageError, match=r"Expected a Profile; got str\."):
        vramtune.frontier("profile.json")


def test_what_is_no_plan_is_refused(profile) -> None:
    expected = pytest.raises(UsageError, match=r"Expected a Plan; got Profile\.")
    with expected:
        vramtune.timeline(profile, profile)
    with expected:
        vramtune.report(profile, profile, "report.html")
    with expected:
        vramtune.install(object(), profile)
