"""`autotune` and its handle on the simulated accelerator: facts measured there, profile, plan, calls, removal."""

import gc
import logging
from dataclasses import replace

import pytest
import torch

import vramtune
from tests import tiny_pipelines
from vramtune.errors import BudgetError, UsageError
from vramtune.units import GIB, MIB

CALL = {"num_inference_steps": 2, "output_type": "pt", **tiny_pipelines.CALL["flux"]}

LESS_GIB = 56 * MIB / GIB
"""Less than the 96 MiB of all of it resident, so that the transformer is streamed."""


@pytest.fixture
def pipe(sim, no_garbage):
    return tiny_pipelines.larger_flux()


@pytest.fixture
def tuned(pipe):
    """The pipeline tuned with its transformer streamed."""
    with vramtune.autotune(pipe, LESS_GIB, call_kwargs=CALL, device="sim", progress=False) as tuned:
        yield tuned


def roles(plan):
    return {p.component: {p.role(s) for s in range(len(p.kept))} for p in plan.placements}


def test_without_a_budget_everything_is_resident(pipe):
    with vramtune.autotune(pipe, call_kwargs=CALL, progress=False) as tuned:
        assert set.union(*roles(tuned.plan).values()) == {"resident"}


def test_outputs_are_those_of_the_pipeline_resident_on_the_device(pipe, tuned):
    wanted = tiny_pipelines.run(tiny_pipelines.larger_flux().to("sim"), "flux").cpu()
    gc.collect()
    assert "streamed" in roles(tuned.plan)["transformer"]
    assert torch.equal(tiny_pipelines.run(pipe, "flux").cpu(), wanted)
    assert torch.equal(tiny_pipelines.run(pipe, "flux").cpu(), wanted)


def test_a_second_call_keeps_to_the_budget_and_moves_what_was_planned(pipe, tuned):
    assert tuned.measured is None
    tiny_pipelines.run(pipe, "flux")
    tiny_pipelines.run(pipe, "flux")
    assert tuned.measured.peak_bytes <= tuned.plan.asked_bytes
    assert tuned.measured.moved_bytes == tuned.plan.estimate.moved_bytes
    assert tuned.measured.num_out_of_memory == 0


def test_its_profile_rests_on_the_devices_measured_rates(tuned):
    assert tuned.profile.device.source == "measured"
    assert vramtune.profile(tiny_pipelines.build("flux"), call_kwargs=CALL, progress=False).device.name == (
        tuned.profile.device.name
    )


def test_profile_and_autotune_know_the_same_gpu(sim, pipe):
    predicted = vramtune.profile(pipe, call_kwargs=CALL, progress=False)
    with vramtune.autotune(pipe, call_kwargs=CALL, progress=False) as tuned:
        # what is free of the host changes all the time
        assert replace(tuned.profile.device, ram_bytes=None) == replace(predicted.device, ram_bytes=None)


def test_its_comparison_has_the_plan_beside_modes_that_do_not_fit(tuned):
    modes = {mode.mode: mode for mode in tuned.compare().modes}
    assert modes["vramtune"].fits
    assert modes["all resident"].fits is False


def test_it_prints_what_was_predicted_then_what_was_measured_then_that_it_is_removed(pipe, tuned):
    assert "measured" not in repr(tuned)
    tiny_pipelines.run(pipe, "flux")
    assert "measured" in repr(tuned)
    tuned.remove()
    assert repr(tuned).endswith("Removed: the pipeline is as it was.")


def test_its_report_shows_what_was_measured(pipe, tuned, tmp_path):
    tiny_pipelines.run(pipe, "flux")
    tuned.report(tmp_path / "report.html")
    assert "measured" in (tmp_path / "report.html").read_text()
    with pytest.raises(UsageError, match="Cannot write"):
        tuned.report(tmp_path)


def test_its_tables_and_its_plot_have_every_stage(pipe, tuned):
    tiny_pipelines.run(pipe, "flux")
    stages = ["text_encoder", "text_encoder_2", "transformer", "vae.decode"]
    assert list(tuned.measured.to_frame()["stage"]) == stages
    assert list(tuned.to_frame()["stage"]) == stages
    assert tuned.plot().get_title(loc="left")


def test_one_line_on_standard_error_says_what_to_expect(pipe, capsys, caplog):
    caplog.set_level(logging.INFO, logger="vramtune")
    vramtune.autotune(pipe, 0.2, call_kwargs=CALL).remove()
    (record,) = [record for record in caplog.records if record.levelno == logging.INFO]
    assert "transformer resident" in record.message
    assert "predicted" in record.message
    assert "bound" in record.message
    captured = capsys.readouterr()
    assert captured.out == ""
    assert record.message in captured.err


def test_it_says_nothing_without_progress(pipe, capsys):
    vramtune.autotune(pipe, 0.2, call_kwargs=CALL, progress=False).remove()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"vram_gb": -1}, "above 0"),
        ({"vram_gb": 1, "device": "cpu"}, "CPU"),
        ({"vram_gb": 1, "lock_gb": 0}, "lock_gb must be a finite number above 0"),
        ({"vram_gb": 1, "allow": "vae_tilling"}, "vae_tilling"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_changes(sim, no_garbage, arguments, said):
    pipe = tiny_pipelines.build("flux")
    with pytest.raises(UsageError, match=said):
        vramtune.autotune(pipe, **arguments, progress=False)
    assert not any(hasattr(part, "_hf_hook") for part in pipe.components.values())


def test_no_more_is_page_locked_than_asked_and_no_bit_changes(sim, pipe):
    wanted = pipe("a red fox", **CALL, generator=torch.Generator().manual_seed(0)).images
    gc.collect()
    before = sim.pinned_memory_allocated()
    with vramtune.autotune(pipe, LESS_GIB, lock_gb=20 * MIB / GIB, call_kwargs=CALL, progress=False) as tuned:
        assert 0 < tuned.plan.estimate.locked_bytes <= tuned.plan.lockable_bytes == 20 * MIB
        images = pipe("a red fox", **CALL, generator=torch.Generator().manual_seed(0)).images
        assert sim.max_pinned_memory_allocated() - before <= tuned.plan.estimate.locked_bytes
    assert torch.equal(images.cpu(), wanted)


def test_a_string_is_refused_as_a_pipeline(sim):
    with pytest.raises(UsageError, match="Expected a diffusers pipeline; got str"):
        vramtune.autotune("flux.1-dev", 1, progress=False)


def test_a_budget_that_nothing_fits_leaves_the_pipeline_as_it_was(sim, no_garbage):
    pipe = tiny_pipelines.build("flux")
    with pytest.raises(BudgetError, match="at least"):
        vramtune.autotune(pipe, 0.0001, call_kwargs=CALL, progress=False)
    assert not any(hasattr(part, "_hf_hook") for part in pipe.components.values())


def test_a_tuned_pipeline_is_refused_until_it_is_removed(pipe, tuned):
    for ask in (vramtune.autotune, vramtune.profile):
        with pytest.raises(UsageError, match=r"already installed.*remove_all_hooks\(\)"):
            ask(pipe, progress=False)


def test_removal_gives_the_pipeline_back_as_it_was(pipe, tuned):
    tiny_pipelines.run(pipe, "flux")
    tuned.remove()
    assert {p.device.type for p in pipe.transformer.parameters()} == {"cpu"}
    assert type(pipe).__name__ == "FluxPipeline"
    assert not hasattr(pipe.transformer, "_hf_hook")


def test_a_saved_plan_installs_alone_and_ends_with_its_block(pipe, tmp_path):
    with vramtune.autotune(pipe, 0.2, call_kwargs=CALL, progress=False) as tuned:
        tuned.plan.save(tmp_path / "plan.json")
    plan = vramtune.Plan.load(tmp_path / "plan.json")
    assert plan == tuned.plan
    with vramtune.install(pipe, plan) as again:
        tiny_pipelines.run(pipe, "flux")
        assert again.measured is not None
        assert again.is_installed
    assert not again.is_installed


def test_a_plan_for_other_weights_is_refused(pipe):
    with vramtune.autotune(pipe, 0.2, call_kwargs=CALL, progress=False) as tuned:
        plan = tuned.plan
    with pytest.raises(UsageError, match="does not fit the pipeline: transformer"):
        vramtune.install(tiny_pipelines.build("flux"), plan)
