"""MODEL, --gpu and the call's settings: of every command that takes them."""

import pytest
from diffusers import FluxModularPipeline, LattePipeline

from tests.cli.cli_runner import refused, run
from tests.reports import examples
from vramtune.cli import inputs, options
from vramtune.errors import NoAcceleratorError, TraceError, UnknownNameError, UsageError
from vramtune.machine import live

COMMANDS = {
    "plan": ("plan", "sdxl", "--vram-gb", "6", "--gpu", "RTX 4060"),
    "compare": ("compare", "sdxl", "--vram-gb", "6", "--gpu", "RTX 4060"),
    "frontier": ("frontier", "sdxl", "--gpu", "RTX 4060"),
    "profile": ("profile", "sdxl", "--gpu", "RTX 4060"),
}
EACH = pytest.mark.parametrize("command", COMMANDS)


class VideoPipeline:
    def __call__(self, prompt=None, num_frames=81, num_videos_per_prompt=1):
        raise AssertionError("the command line never runs a pipeline itself")


@EACH
def test_settings_go_to_the_pipeline_under_its_own_names(profiler, command):
    settings = ("--height", 768, "--width", 512, "--steps", 20, "--batch", 4, "--prompt", "a fox")
    assert run(*COMMANDS[command], *settings).exit_code == 0
    assert profiler.asked["call_kwargs"] == {
        "prompt": "a fox",
        "height": 768,
        "width": 512,
        "num_inference_steps": 20,
        "num_images_per_prompt": 4,
    }


@EACH
def test_settings_left_out_leave_the_pipelines_defaults(profiler, command):
    assert run(*COMMANDS[command]).exit_code == 0
    assert profiler.asked == {"call_kwargs": {}, "gpu": "RTX 4060", "allow": ()}


def test_settings_left_out_are_those_of_the_models_card(profiler):
    assert run("plan", "z-image", "--vram-gb", "6", "--gpu", "RTX 4060").exit_code == 0
    assert profiler.asked["call_kwargs"] == {"num_inference_steps": 8, "guidance_scale": 0.0}
    assert run("plan", "z-image-turbo", "--vram-gb", "6", "--gpu", "RTX 4060", "--steps", 20).exit_code == 0
    assert profiler.asked["call_kwargs"] == {"num_inference_steps": 20, "guidance_scale": 0.0}


def test_a_number_of_steps_stands_in_for_the_cards_schedule(profiler):
    assert run("plan", "ltx-2.5", "--vram-gb", "6", "--gpu", "RTX 4060").exit_code == 0
    assert len(profiler.asked["call_kwargs"]["sigmas"]) == 8
    assert run("plan", "ltx-2.5", "--vram-gb", "6", "--gpu", "RTX 4060", "--steps", 20).exit_code == 0
    assert "sigmas" not in profiler.asked["call_kwargs"]


def test_a_trace_says_what_it_was_asked_of(profiler):
    assert run(*COMMANDS["plan"], "--quantize", "unet=nf4").exit_code == 0
    assert (profiler.workload.model, profiler.workload.quantize) == ("sdxl", {"unet": "nf4"})


@EACH
@pytest.mark.parametrize(
    "given",
    [
        ("--quantize", "transformer=nf4,text_encoder_2=int8"),
        ("--quantize", "transformer=nf4", "--quantize", "text_encoder_2=int8"),
        ("--quantize", "transformer=nf4, text_encoder_2=int8,transformer=nf4"),
    ],
)
def test_components_are_quantized_as_they_are_loaded(profiler, command, given):
    assert run(*COMMANDS[command], *given).exit_code == 0
    assert profiler.quantized == {"transformer": "nf4", "text_encoder_2": "int8"}


@EACH
@pytest.mark.parametrize("given", ["nf4", "transformer=", "=nf4", "", "transformer=nf4,"])
def test_what_does_not_say_what_is_quantized_how_is_refused(profiler, command, given):
    refused(run(*COMMANDS[command], "--quantize", given), "--quantize", "such as transformer=nf4")
    assert profiler.quantized is None


def test_a_component_is_quantized_in_one_way(profiler):
    refused(run(*COMMANDS["plan"], "--quantize", "transformer=nf4,transformer=fp4"), "twice, as nf4 and fp4")


def test_the_weights_of_a_saved_profile_are_in_it(saved):
    refused(run("plan", saved, "--vram-gb", "6", "--quantize", "unet=nf4"), "--quantize", "saved profile")


def test_ways_to_quantize_are_completed_after_the_component():
    assert options.Quantize.__metadata__[0].autocompletion("unet=n") == ["unet=nf4"]
    assert options.Quantize.__metadata__[0].autocompletion("un") == []


def test_a_model_that_is_given_an_image_gets_a_blank_one_of_its_cards_size(profiler):
    assert run("plan", "wan2.2-i2v-a14b", "--vram-gb", "6", "--gpu", "RTX 4060").exit_code == 0
    assert profiler.asked["call_kwargs"]["image"].size == (832, 480)


def test_a_batch_of_videos_has_the_pipelines_name():
    assert inputs.call_kwargs(VideoPipeline(), {"batch": 2, "frames": 49}) == {
        "num_videos_per_prompt": 2,
        "num_frames": 49,
    }


def test_frames_have_the_name_that_latte_has_for_them():
    assert inputs.call_kwargs(object.__new__(LattePipeline), {"frames": 8}) == {"video_length": 8}


def test_a_modular_pipeline_takes_what_its_blocks_take():
    asked = {"height": 512, "steps": 4, "batch": 2}
    named = {"height": 512, "num_inference_steps": 4, "num_images_per_prompt": 2}
    assert inputs.call_kwargs(FluxModularPipeline(), asked) == named
    with pytest.raises(UsageError, match=r"takes no num_frames or video_length.*--height"):
        inputs.call_kwargs(FluxModularPipeline(), {"frames": 8})


def test_a_setting_that_the_pipeline_does_not_take_is_named_with_those_it_takes(profiler):
    result = run(*COMMANDS["plan"], "--frames", 81)
    refused(result, "--frames", "ImagePipeline takes no num_frames", "--height")
    assert profiler.asked == {}


@pytest.mark.parametrize("option", ["--height", "--width", "--frames", "--steps", "--batch"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "tall"])
def test_sizes_are_whole_and_above_0(profiler, option, value):
    refused(run(*COMMANDS["plan"], option, value), option)
    assert profiler.asked == {}


# Refused before anything takes time


@EACH
def test_an_unknown_gpu_is_refused_with_near_names(profiler, command):
    refused(run(*COMMANDS[command][:-1], "RTX 4061"), "RTX 4061", "RTX 4060")
    assert profiler.asked == {}


@EACH
def test_a_machine_without_a_gpu_needs_one_to_be_named(profiler, monkeypatch, command):
    def no_gpu():
        raise NoAcceleratorError("No GPU here. Name one.")

    monkeypatch.setattr(live, "this_gpu", no_gpu)
    refused(run(*COMMANDS[command][:-2]), "No GPU here. Name one.")
    assert profiler.asked == {}


def test_this_machines_gpu_is_taken_where_none_is_named(profiler, monkeypatch):
    monkeypatch.setattr(live, "this_gpu", lambda: examples.DEVICE)
    assert run(*COMMANDS["plan"][:-2]).exit_code == 0
    assert profiler.asked["gpu"] == examples.DEVICE.name


@pytest.mark.parametrize("command", ["plan", "compare"])
def test_a_budget_above_the_card_is_refused(profiler, command):
    refused(run(command, "sdxl", "--vram-gb", "12", "--gpu", "RTX 4060"), "RTX 4060 has 8.00 GiB")
    assert profiler.asked == {}


@EACH
def test_an_unknown_permission_is_refused(profiler, command):
    refused(run(*COMMANDS[command], "--allow", "tf32"), "tf32", "vae_tiling")
    assert profiler.asked == {}


@pytest.mark.parametrize(
    "given", [["vae_tiling,fp8_weights"], ["vae_tiling", "fp8_weights"], ["vae_tiling, fp8_weights"]]
)
def test_permissions_may_be_given_together(given):
    assert options.permitted(given) == ("vae_tiling", "fp8_weights")


@EACH
def test_the_call_is_followed_under_what_is_allowed(profiler, command):
    result = run(*COMMANDS[command], "--allow", "fp8_weights")
    assert profiler.asked["allow"] == ("fp8_weights",)
    assert (result.exit_code, "does not know" in result.stderr) == ((0, False) if command == "profile" else (2, True))


# Saved profiles


@pytest.mark.parametrize("given", [("--gpu", "4090"), ("--steps", 20), ("--prompt", "a fox")])
def test_what_is_in_a_saved_profile_cannot_be_given_again(saved, given):
    refused(run("plan", saved, "--vram-gb", 6, *given), given[0], "sdxl.json", "saved profile")


def test_a_missing_profile_is_refused(tmp_path):
    refused(run("plan", tmp_path / "none.json", "--vram-gb", 6), "none.json", "No such file")


def test_a_file_that_is_not_a_profile_is_refused(tmp_path):
    examples.sdxl_plan().save(tmp_path / "plan.json")
    refused(run("plan", tmp_path / "plan.json", "--vram-gb", 6), "Expected a vramtune Profile", "a Plan", "plan.json")
    (tmp_path / "other.json").write_text("{}")
    refused(run("frontier", tmp_path / "other.json"), "not a vramtune file", "`vramtune profile --save`")


def test_a_folder_may_be_called_like_a_file(tmp_path):
    (tmp_path / "pipeline.json").mkdir()
    assert not inputs.is_saved(str(tmp_path / "pipeline.json"))


# On the way


@EACH
def test_a_call_that_cannot_be_followed_ends_with_1(profiler, command):
    profiler.error = TraceError("unet: .item() needs a real number.")
    result = run(*COMMANDS[command])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: unet: .item() needs a real number.\n"


@pytest.mark.parametrize(
    "error", [UsageError("`height` must be divisible by 8."), UnknownNameError("model", "sdxll", ["sdxl"])]
)
@pytest.mark.parametrize("output", [[], ["--json"]])
def test_wrong_usage_found_on_the_way_is_one_line_on_stderr(profiler, error, output):
    profiler.error = error
    result = run(*COMMANDS["plan"], *output)
    refused(result)
    assert result.stderr == f"Error: {error}\n"


def test_an_error_that_is_not_ours_is_not_hidden(profiler):
    profiler.error = ZeroDivisionError("a mistake of ours")
    with pytest.raises(ZeroDivisionError):
        run(*COMMANDS["plan"])
