import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import vramtune
from tests.reports import examples
from vramtune import catalog, cli
from vramtune.errors import BudgetError, NoAcceleratorError, TraceError, UnknownNameError, UsageError
from vramtune.profiler import device
from vramtune.schema import Plan
from vramtune.units import GIB

PLAN = ["plan", "sdxl", "--vram-gb", "6", "--gpu", "RTX 4060"]


class ImagePipeline:
    def __call__(self, prompt=None, height=None, width=None, num_inference_steps=50, num_images_per_prompt=1):
        raise AssertionError("the command line never runs a pipeline itself")


class VideoPipeline:
    def __call__(self, prompt=None, num_frames=81, num_videos_per_prompt=1):
        raise AssertionError("the command line never runs a pipeline itself")


class Front:
    """Stands in for `vramtune.front`: answers with examples, and remembers how it was asked."""

    def __init__(self):
        self.asked = {}
        self.error = None

    def profile(self, pipe, *, call_kwargs=None, gpu=None, progress=True, on_call=None):
        self.asked |= {"pipe": pipe, "call_kwargs": call_kwargs, "gpu": gpu, "progress": progress}
        on_call("unet")
        if isinstance(self.error, Exception) and not isinstance(self.error, BudgetError):
            raise self.error
        return examples.sdxl()

    def plan(self, profile, vram_gb, *, allow=()):
        self.asked |= {"vram_gb": vram_gb, "allow": allow}
        if isinstance(self.error, BudgetError):
            raise self.error
        return examples.sdxl_plan()

    def compare(self, profile, vram_gb, *, allow=()):
        return examples.comparison(examples.sdxl_plan())

    def timeline(self, profile, plan):
        return examples.timeline(profile, plan)


@pytest.fixture
def front(monkeypatch):
    """A stand-in front door, and a catalog of which one pipeline can be built."""
    stand_in = Front()
    monkeypatch.setattr(vramtune, "front", stand_in, raising=False)
    monkeypatch.setattr(catalog, "load", lambda model: ImagePipeline(), raising=False)
    return stand_in


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)


# What `plan` prints


def test_plan_prints_the_verdict_first_and_nothing_else_on_stderr(front):
    result = run(*PLAN)
    assert result.exit_code == 0
    assert result.stdout.startswith("Fits: predicted peak 5.95 of 6.00 GiB on GeForce RTX 4060.")
    assert result.stderr == ""
    assert "\x1b" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_plan_prints_one_json_object(front):
    result = run(*PLAN, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["fits"] is True
    assert found["plan"]["asked_bytes"] == 6 * GIB
    assert result.stderr == ""


def test_a_budget_that_is_too_small_ends_with_3_and_says_what_would_do(front):
    front.error = nothing_fits()
    result = run(*PLAN)
    assert result.exit_code == 3
    assert result.stdout.startswith("It does not fit 6.00 GiB. Give it at least 7.00 GiB")
    assert "model offload" in result.stdout


def test_a_budget_that_is_too_small_is_json_too(front):
    front.error = nothing_fits()
    result = run(*PLAN, "--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert found["fits"] is False
    assert (found["smallest_bytes"], found["permission"]) == (7 * GIB, "vae_tiling")


def nothing_fits():
    return BudgetError(
        "It does not fit 6.00 GiB. Give it at least 7.00 GiB, or allow 'vae_tiling'.",
        budget_bytes=6 * GIB,
        smallest_bytes=7 * GIB,
        permission="vae_tiling",
        permitted_bytes=4 * GIB,
    )


# What `plan` asks for


def test_options_go_to_the_pipeline_under_its_own_names(front):
    run(*PLAN, "--height", 768, "--width", 512, "--steps", 20, "--batch", 4, "--prompt", "a fox")
    assert front.asked["call_kwargs"] == {
        "prompt": "a fox",
        "height": 768,
        "width": 512,
        "num_inference_steps": 20,
        "num_images_per_prompt": 4,
    }


def test_options_left_out_leave_the_pipelines_defaults(front):
    run(*PLAN)
    assert front.asked["call_kwargs"] == {}
    assert (front.asked["gpu"], front.asked["allow"], front.asked["vram_gb"]) == ("RTX 4060", (), 6.0)


def test_a_batch_of_videos_has_the_pipelines_name():
    assert cli.call_kwargs(VideoPipeline(), {"--batch": 2, "--frames": 49}) == {
        "num_videos_per_prompt": 2,
        "num_frames": 49,
    }


def test_permissions_may_be_given_one_by_one(front):
    run(*PLAN, "--allow", "vae_tiling", "--allow", "vae_tiling")
    assert front.asked["allow"] == ("vae_tiling", "vae_tiling")


def test_an_unknown_permission_is_refused_before_the_work(front):
    refused(run(*PLAN, "--allow", "fp8_weights"), "fp8_weights", "vae_tiling")
    assert front.asked == {}


def test_a_budget_above_the_card_is_refused_before_the_work(front):
    refused(run("plan", "sdxl", "--vram-gb", "12", "--gpu", "RTX 4060"), "12.00 GiB", "RTX 4060 has 8.00 GiB")
    assert front.asked == {}


# Files


def test_a_plan_is_saved_and_can_be_read_back(front, tmp_path):
    assert run(*PLAN, "--save", tmp_path / "plan.json").exit_code == 0
    assert Plan.load(tmp_path / "plan.json") == examples.sdxl_plan()


def test_a_plot_is_drawn(front, tmp_path):
    assert run(*PLAN, "--plot", tmp_path / "memory.png").exit_code == 0
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_no_file_is_written_where_nothing_fits(front, tmp_path):
    front.error = nothing_fits()
    result = run(*PLAN, "--plot", tmp_path / "memory.png", "--save", tmp_path / "plan.json")
    assert result.exit_code == 3
    assert list(tmp_path.iterdir()) == []
    assert "no plan" in result.stderr.lower()


@pytest.mark.parametrize("option", ["--plot", "--save"])
def test_a_path_in_a_folder_that_is_missing_is_refused_before_the_work(front, tmp_path, option):
    refused(run(*PLAN, option, tmp_path / "missing" / "out.png"), option, "there is no folder")
    assert front.asked == {}


@pytest.mark.parametrize("option", ["--plot", "--save"])
def test_a_path_that_is_a_folder_is_refused_before_the_work(front, tmp_path, option):
    (tmp_path / "out.png").mkdir()
    refused(run(*PLAN, option, tmp_path / "out.png"), option, "is a folder")
    assert front.asked == {}


@pytest.mark.parametrize("option", ["--plot", "--save"])
def test_a_path_without_permission_is_refused_before_the_work(front, tmp_path, monkeypatch, option):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    refused(run(*PLAN, option, tmp_path / "out.png"), option, "permission denied")
    assert front.asked == {}


def test_a_plot_of_an_unknown_format_is_refused_before_the_work(front, tmp_path):
    refused(run(*PLAN, "--plot", tmp_path / "memory.xyz"), "--plot", ".png")
    assert front.asked == {}


def test_a_disk_that_refuses_the_file_is_an_error_of_ours(front, tmp_path, monkeypatch):
    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Plan, "save", full)
    refused(run(*PLAN, "--save", tmp_path / "plan.json"), "--save", "No space left on device")


# Bad input


def refused(result, *said):
    """Wrong usage: exit code 2, one line on stderr, no traceback, nothing on stdout."""
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for words in said:
        assert words in result.stderr


@pytest.mark.parametrize("budget", ["0", "-8", "nan", "inf", "-inf"])
def test_a_budget_that_is_no_amount_is_refused_before_the_work(front, budget):
    refused(run("plan", "sdxl", "--vram-gb", budget), "finite number above 0", str(float(budget)))
    assert front.asked == {}


def test_a_budget_of_text_is_refused(front):
    refused(run("plan", "sdxl", "--vram-gb", "lots"), "--vram-gb", "lots")


def test_a_budget_is_required(front):
    refused(run("plan", "sdxl"), "--vram-gb")


@pytest.mark.parametrize("option", ["--height", "--width", "--frames", "--steps", "--batch"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "tall"])
def test_sizes_are_whole_and_above_0(front, option, value):
    refused(run(*PLAN, option, value), option)
    assert front.asked == {}


def test_an_option_that_the_pipeline_does_not_take_is_named_with_those_it_takes(front):
    refused(run(*PLAN, "--frames", 81), "--frames", "ImagePipeline takes no num_frames", "--height")
    assert front.asked == {}


@pytest.mark.parametrize(
    "error",
    [
        UsageError("A budget of 24.00 GiB was asked; GeForce RTX 4060 has 8.00 GiB."),
        UnknownNameError("permission", "vae_tilling", ["vae_tiling"]),
    ],
)
@pytest.mark.parametrize("output", [[], ["--json"]])
def test_wrong_usage_found_on_the_way_is_one_line_on_stderr(front, error, output):
    front.error = error
    result = run(*PLAN, *output)
    refused(result)
    assert result.stderr == f"Error: {error}\n"


def test_an_unknown_gpu_is_refused_before_the_work(front):
    refused(run("plan", "sdxl", "--vram-gb", 8, "--gpu", "RTX 4061"), "RTX 4061", "RTX 4060")
    assert front.asked == {}


def test_a_machine_without_a_gpu_is_refused_before_the_work(front, monkeypatch):
    def no_gpu():
        raise NoAcceleratorError("No GPU here. Name one.")

    monkeypatch.setattr(device, "this_gpu", no_gpu)
    refused(run("plan", "sdxl", "--vram-gb", 8), "No GPU here. Name one.")
    assert front.asked == {}


def test_this_machines_gpu_is_taken_where_none_is_named(front, monkeypatch):
    monkeypatch.setattr(device, "this_gpu", lambda: examples.DEVICE)
    assert run("plan", "sdxl", "--vram-gb", 6).exit_code == 0
    assert front.asked["gpu"] is None


def test_a_call_that_cannot_be_followed_ends_with_1(front):
    front.error = TraceError("unet: .item() needs a real number.")
    result = run(*PLAN)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: unet: .item() needs a real number.\n"


def test_an_error_that_is_not_ours_is_not_hidden(front):
    front.error = ZeroDivisionError("a mistake of ours")
    with pytest.raises(ZeroDivisionError):
        run(*PLAN)


# Help and start-up


def test_help_shows_examples_and_the_json_object():
    result = run("plan", "--help")
    assert result.exit_code == 0
    assert 'vramtune plan sdxl --vram-gb 8 --gpu "RTX 4060"' in result.stdout
    assert '"fits": true' in result.stdout
    assert "3 does not fit" in result.stdout


def test_no_arguments_show_the_help():
    result = run()
    assert "Commands" in result.stdout + result.stderr


def test_version():
    assert run("--version").stdout == f"vramtune {vramtune.__version__}\n"


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from vramtune.cli import app\n"
        "try: app(['plan', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'diffusers', 'scipy', 'numpy', 'matplotlib', 'pandas', 'msgspec'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
