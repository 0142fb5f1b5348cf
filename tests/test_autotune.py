"""The front door on the simulated accelerator: facts measured there, profile, plan, installation."""

import gc

import pytest
import torch

import vramtune
from tests import tiny_pipelines
from vramtune.errors import BudgetError, UsageError
from vramtune.units import GIB, MIB

CALL = {"num_inference_steps": 2, "output_type": "pt", **tiny_pipelines.CALL["flux"]}


def test_autotune_plans_installs_says_so_and_gives_back(sim, no_garbage, capsys, tmp_path):
    wanted = tiny_pipelines.run(tiny_pipelines.larger_flux().to("sim"), "flux").cpu()
    gc.collect()
    pipe = tiny_pipelines.larger_flux()
    everything = vramtune.autotune(pipe, call_kwargs=CALL, progress=False)
    assert all(p.role(s) == "resident" for p in everything.plan.placements for s in range(len(p.kept)))
    capsys.readouterr()
    everything.remove()
    budget_gb = (everything.plan.estimate.peak_bytes - 40 * MIB) / GIB
    tuned = vramtune.autotune(pipe, budget_gb, call_kwargs=CALL, device="sim", progress=False)
    line = capsys.readouterr().out
    assert line.startswith("vramtune: ")
    assert "transformer streamed" in line
    assert line.count("\n") == 1
    assert tuned.measured is None
    assert torch.equal(tiny_pipelines.run(pipe, "flux").cpu(), wanted)
    assert torch.equal(tiny_pipelines.run(pipe, "flux").cpu(), wanted)
    measured = tuned.measured
    assert measured is not None
    assert measured.peak_bytes <= budget_gb * GIB
    assert measured.moved_bytes == tuned.plan.estimate.moved_bytes
    assert measured.num_out_of_memory == 0
    assert tuned.profile.device.source == "measured"
    assert "Measured, last call" in repr(tuned)
    modes = {mode.mode: mode for mode in tuned.compare().modes}
    assert modes["vramtune"].fits
    assert modes["all resident"].fits is False
    tuned.report(tmp_path / "report.html")
    assert "measured" in (tmp_path / "report.html").read_text()
    frame = vramtune.to_frame(measured)
    assert list(frame["stage"])[2:] == ["transformer", "vae.decode"]
    with pytest.raises(UsageError, match=r"remove_all_hooks\(\)"):
        vramtune.autotune(pipe, progress=False)
    with pytest.raises(UsageError, match="Cannot write"):
        tuned.report(tmp_path)
    tuned.remove()
    assert repr(tuned).endswith("Removed: the pipeline is as it was.")
    assert {p.device.type for p in pipe.transformer.parameters()} == {"cpu"}
    assert type(pipe).__name__ == "FluxPipeline"
    assert not hasattr(pipe.transformer, "_hf_hook")


def test_what_cannot_be_is_said_before_anything_changes(sim, no_garbage):
    pipe = tiny_pipelines.build("flux")
    with pytest.raises(UsageError, match="Expected a diffusers pipeline; got str"):
        vramtune.autotune("flux.1-dev", 1, progress=False)
    with pytest.raises(UsageError, match="above 0"):
        vramtune.autotune(pipe, -1, progress=False)
    with pytest.raises(BudgetError, match="at least"):
        vramtune.autotune(pipe, 0.0001, call_kwargs=CALL, progress=False)
    with pytest.raises(UsageError, match="CPU"):
        vramtune.autotune(pipe, 1, device="cpu", progress=False)
    with pytest.raises(UsageError, match="vae_tilling"):
        vramtune.autotune(pipe, 1, allow="vae_tilling", progress=False)
    assert not any(hasattr(part, "_hf_hook") for part in pipe.components.values())
    tuned = vramtune.autotune(pipe, 1, call_kwargs=CALL, progress=False)
    with pytest.raises(UsageError, match="already"):
        vramtune.autotune(pipe, 1, progress=False)
    with pytest.raises(UsageError, match="already"):
        vramtune.profile(pipe, gpu="RTX 4060", progress=False)
    tuned.remove()


def test_a_saved_plan_installs_alone(sim, no_garbage, tmp_path):
    pipe = tiny_pipelines.larger_flux()
    tuned = vramtune.autotune(pipe, 0.2, call_kwargs=CALL, progress=False)
    tuned.plan.save(tmp_path / "plan.json")
    tuned.remove()
    plan = vramtune.Plan.load(tmp_path / "plan.json")
    assert plan == tuned.plan
    with vramtune.install(pipe, plan) as installation:
        tiny_pipelines.run(pipe, "flux")
        assert installation.measured is not None
    with pytest.raises(UsageError, match="does not fit the pipeline: transformer"):
        vramtune.install(tiny_pipelines.build("flux"), plan)
