"""The public functions on a real tiny pipeline."""

from dataclasses import replace
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
    assert [stage.name for stage in profile.stages] == ["text_encoder", "text_encoder_2", "transformer", "vae.decode"]


def test_progress_goes_to_standard_error_or_nowhere(capsys) -> None:
    pipe = tiny_pipelines.build("sd15")
    vramtune.profile(pipe, call_kwargs=tiny_pipelines.CALL["sd15"], gpu="4090", progress=False)
    assert capsys.readouterr() == ("", "")
    vramtune.profile(pipe, call_kwargs=tiny_pipelines.CALL["sd15"], gpu="4090")
    captured = capsys.readouterr()
    assert "Tracing" in captured.err
    assert captured.out == ""


def test_plan_comparison_frontier_and_timeline_agree(profile) -> None:
    plan = vramtune.plan(profile, 8)
    assert plan.estimate.peak_bytes <= plan.budget_bytes <= 8 * GIB
    assert vramtune.compare(profile, 8).modes[0].seconds == plan.estimate.seconds
    assert vramtune.frontier(profile).points[-1].seconds == pytest.approx(plan.estimate.seconds)
    assert vramtune.timeline(profile, plan).memory[-1].end_seconds == pytest.approx(plan.estimate.seconds, rel=1e-3)


@pytest.fixture
def runtime(profile) -> SimpleNamespace:
    """A plan as if it were installed."""
    return SimpleNamespace(
        plan=vramtune.plan(profile, 4), measured=None, overrun_bytes={}, embedding_bytes=None, is_installed=True
    )


def test_a_tuned_pipeline_is_a_table_of_stages_and_is_compared_as_it_is(profile, runtime) -> None:
    tuned = vramtune.Tuned(runtime, profile)
    assert list(tuned.to_frame().stage) == [stage.name for stage in runtime.plan.stages]
    assert tuned.compare().plan is runtime.plan


def test_out_of_memory_raises_the_activations_of_a_tuned_pipelines_profile(profile, runtime) -> None:
    runtime.overrun_bytes = {"transformer": GIB}
    known = {stage.name: stage.activation_bytes for stage in profile.stages}
    raised = {stage.name: stage.activation_bytes for stage in vramtune.Tuned(runtime, profile).profile.stages}
    assert raised == known | {"transformer": known["transformer"] + GIB}


def test_a_tuned_pipeline_without_its_profile_says_how_to_give_it(runtime, tmp_path) -> None:
    tuned = vramtune.Tuned(runtime, None)
    for ask in (lambda: tuned.profile, tuned.compare, lambda: tuned.report(tmp_path / "report.html")):
        with pytest.raises(UsageError, match="profile=profile"):
            ask()
    with pytest.raises(UsageError, match="Call the pipeline first"):
        tuned.plot()


def test_a_gpu_may_be_a_device_of_ones_own(profile) -> None:
    device = replace(profile.device, name="my card", flops_per_second={"float32": 1e9})
    costs = vramtune.profile(
        tiny_pipelines.build("flux"), call_kwargs=tiny_pipelines.CALL["flux"], gpu=device, progress=False
    )
    assert costs.device is device
    assert vramtune.plan(costs, 4).estimate.seconds > vramtune.plan(profile, 4).estimate.seconds


def test_one_permission_may_be_given_by_its_name(profile) -> None:
    assert vramtune.plan(profile, 8, allow="vae_tiling").permissions == ()
    with pytest.raises(UnknownNameError, match="int4"):
        vramtune.plan(profile, 8, allow="int4")


@pytest.mark.parametrize("vram_gb", [0, -1, float("nan"), "8", 80])
def test_bad_budgets_are_refused(profile, vram_gb) -> None:
    with pytest.raises(UsageError):
        vramtune.plan(profile, vram_gb)


@pytest.mark.parametrize("name", ["ram_gb", "lock_gb"])
def test_bad_budgets_of_the_host_are_refused_by_name(profile, name) -> None:
    with pytest.raises(UsageError, match=f"{name} must be a finite number above 0"):
        vramtune.plan(profile, 8, **{name: -1})


def test_a_budget_below_the_context_says_what_would_do(profile) -> None:
    with pytest.raises(BudgetError) as raised:
        vramtune.plan(profile, 0.1)
    assert vramtune.plan(profile, raised.value.smallest_bytes / GIB).estimate.peak_bytes <= raised.value.smallest_bytes


def test_a_string_is_refused_as_a_pipeline() -> None:
    with pytest.raises(UsageError, match="Expected a diffusers pipeline; got str"):
        vramtune.profile("sdxl", gpu="4090", progress=False)


def test_profiles_and_plans_print_as_one_line(profile) -> None:
    calls = "text_encoder, text_encoder_2, transformer, vae.decode"
    assert repr(profile) == f"<Profile of FluxPipeline on RTX 4060, predicted: {calls}>"
    printed = str(vramtune.plan(profile, 4))
    assert printed.startswith("<Plan for FluxPipeline in 4.00 GiB of RTX 4060, predicted: peak ")
    assert len(printed) < 120


def test_a_string_is_refused_as_a_profile() -> None:
    for ask in (vramtune.plan, vramtune.compare):
        with pytest.raises(UsageError, match=r"Expected a Profile; got str\. `vramtune\.profile` makes one"):
            ask("profile.json", 8)
    with pytest.raises(UsageError, match=r"Expected a Profile; got str\."):
        vramtune.frontier("profile.json")


def test_a_profile_is_refused_as_a_plan(profile) -> None:
    expected = pytest.raises(UsageError, match=r"Expected a Plan; got Profile\.")
    with expected:
        vramtune.timeline(profile, profile)
    with expected:
        vramtune.report(profile, profile, "report.html")
    with expected:
        vramtune.install(object(), profile)
