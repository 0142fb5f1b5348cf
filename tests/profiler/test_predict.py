import functools
import inspect
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import cpu_offload_with_hook, init_empty_weights
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.utils import import_utils
from torch import nn

from tests import tiny_pipelines
from tests.classes.families import FAMILIES
from tests.profiler.test_fake_copy import picture as state_of
from tests.reports.examples import in_memory
from vramtune.contract import modules_of
from vramtune.errors import TraceError, UsageError
from vramtune.predict import predict_profile
from vramtune.pricing.price import price
from vramtune.profiler.follow import follow
from vramtune.profiler.record import record_runs
from vramtune.profiler.tracker import Allocation
from vramtune.schema import Profile, Spread, Spreads, Work, from_json, to_json
from vramtune.units import MIB

NAMES = list(tiny_pipelines.CALL)


def predict(pipe, name, device, **call_kwargs):
    settings = {"prompt": "a cat", "num_inference_steps": 4, **tiny_pipelines.CALL[name], **call_kwargs}
    return predict_profile(pipe, call_kwargs=settings, device=device)


@pytest.fixture(scope="session")
def predicted(device):
    """A function of a name: the pipeline, a real call before its prediction, its state before and after, the profile."""

    @functools.cache
    def case(name):
        pipe = tiny_pipelines.build(name)
        output, before = tiny_pipelines.run(pipe, name), state_of(pipe)
        profile = predict(pipe, name, device)
        return SimpleNamespace(pipe=pipe, output=output, before=before, after=state_of(pipe), profile=profile)

    return case


def test_one_trace_is_priced_for_many_devices(device):
    faster = replace(device, flops_per_second={name: 8 * rate for name, rate in device.flops_per_second.items()})
    pipe = tiny_pipelines.build("sd15")
    call = {"prompt": "a cat", "num_inference_steps": 4, **tiny_pipelines.CALL["sd15"]}
    followed = follow(pipe, call_kwargs=call, kernels=device.kernels)
    for other in (device, faster):
        assert price(followed, other) == predict_profile(pipe, call_kwargs=call, device=other)


def test_an_activity_is_as_sure_as_what_it_waits_for(device):
    def spread(operation_seconds):
        spreads = Spreads(gpu=Spread(low=0.9, high=1.2), host=Spread(low=0.5, high=2.0))
        unsure = replace(device, spreads=spreads, operation_seconds=operation_seconds)
        found = predict(tiny_pipelines.build("sd15"), "sd15", unsure).stages[0].activities[0].spread
        return found.low, found.high

    assert spread(0.0) == pytest.approx((0.9, 1.2))
    assert spread(1.0) == pytest.approx((0.5, 2.0))


def record(pipe, **call_kwargs):
    kwargs = {"num_inference_steps": 1, "output_type": "pt", **call_kwargs}
    return record_runs(pipe, [kwargs], largest_real_bytes=MIB, on_call=lambda name: None)[0]


def live_and_peak_bytes(trace):
    live = peak = 0
    for entry in trace.tape:
        if isinstance(entry, Allocation):
            live += entry.num_bytes
            peak = max(peak, live)
    return live, peak


def stages_of(profile):
    return [(stage.name, stage.num_iterations) for stage in profile.stages]


# ---------------------------------------------------------------------------------------------------
# The pipeline is left as it was


@pytest.mark.parametrize("name", NAMES)
def test_a_prediction_leaves_the_pipeline_and_its_output_as_they_were(name, predicted):
    case = predicted(name)
    assert case.after == case.before
    assert torch.equal(tiny_pipelines.run(case.pipe, name), case.output)


def test_ctrl_c_during_a_prediction_leaves_the_pipeline_as_it_was(device):
    def interrupt(name):
        if name == "unet":
            raise KeyboardInterrupt

    pipe = tiny_pipelines.build("sd15")
    before = state_of(pipe)
    with pytest.raises(KeyboardInterrupt):
        predict_profile(pipe, call_kwargs={"height": 32, "width": 32}, device=device, on_call=interrupt)
    assert state_of(pipe) == before


def test_a_prediction_keeps_the_state_of_the_users_generator(device):
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    predict(tiny_pipelines.build("sd15"), "sd15", device, generator=generator)
    assert torch.equal(generator.get_state(), before)


def test_a_pipeline_under_model_offload_has_the_same_profile_and_stays_under_it(device, predicted):
    pipe = tiny_pipelines.build("sd15")
    for component in modules_of(pipe).values():
        _, hook = cpu_offload_with_hook(component, execution_device="cpu")
        pipe._all_hooks = [*getattr(pipe, "_all_hooks", []), hook]
    before = state_of(pipe)
    assert predict(pipe, "sd15", device) == predicted("sd15").profile
    assert state_of(pipe) == before


# ---------------------------------------------------------------------------------------------------
# What a profile holds


@pytest.mark.parametrize("name", NAMES)
def test_groups_hold_every_used_weight_once(name, predicted):
    for component in predicted(name).profile.components:
        layers = component.layers
        assert component.used_bytes == sum(layer.weights.allocated_bytes for layer in layers)
        assert component.used_bytes <= component.weights.allocated_bytes
        for number, group in enumerate(component.groups):
            assert group.weight_bytes == sum(layer.weights.allocated_bytes for layer in layers if layer.group == number)
        assert len({group.name for group in component.groups}) == len(component.groups)


@pytest.mark.parametrize("name", NAMES)
def test_a_component_s_weights_are_all_that_its_modules_own(name, predicted):
    case = predicted(name)
    for component in case.profile.components:
        module = getattr(case.pipe, component.name)
        tensors = [*module.parameters(), *module.buffers()]
        assert component.weights.num_bytes == sum(tensor.nbytes for tensor in tensors)
        assert component.weights.num_tensors == len(tensors)


@pytest.mark.parametrize("name", NAMES)
def test_reserved_memory_of_a_call_is_no_less_than_that_of_its_segments(name, predicted):
    for activity in (activity for stage in predicted(name).profile.stages for activity in stage.activities):
        assert activity.activation_bytes >= max(segment.activation_bytes for segment in activity.segments)
        assert activity.seconds > 0


def test_meta_weights_give_the_same_profile_as_real_ones(device, predicted):
    pipe = tiny_pipelines.build("sdxl")
    for module in modules_of(pipe).values():
        module.to("meta")
    assert in_memory(predict(pipe, "sdxl", device)) == predicted("sdxl").profile


def test_a_profile_written_to_json_is_read_back_equal(predicted):
    profile = predicted("sd3").profile
    assert from_json(Profile, to_json(profile)) == profile


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sd15", [("text_encoder", 2), ("unet", 4), ("vae.decode", 1)]),
        ("sdxl", [("text_encoder", 1), ("text_encoder_2", 1), ("unet", 4), ("vae.decode", 1)]),
        ("flux", [("text_encoder", 1), ("text_encoder_2", 1), ("transformer", 4), ("vae.decode", 1)]),
        ("wan22", [("text_encoder", 2), ("transformer", 6), ("transformer_2", 2), ("vae.decode", 1)]),
        ("ltx", [("text_encoder", 2), ("transformer", 4), ("vae.decode", 1)]),
    ],
)
def test_stages_are_the_loops_of_the_pipeline_s_call(name, expected, predicted):
    assert stages_of(predicted(name).profile) == expected


def test_encoders_called_twice_in_turn_are_unrolled(predicted):
    stages = stages_of(predicted("sd3").profile)
    encoders = ["text_encoder", "text_encoder_2", "text_encoder_3"]
    assert [name for name, _ in stages[:6]] == [*encoders, *(f"{name} (2)" for name in encoders)]


def test_an_encoded_image_and_a_decoded_one_are_different_stages(device):
    pipe = StableDiffusionImg2ImgPipeline(**tiny_pipelines.build("sd15").components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt": "a cat", "image": torch.zeros(1, 3, 32, 32), "num_inference_steps": 10}
    profile = predict_profile(pipe, call_kwargs=call, device=device)
    assert [name for name, _ in stages_of(profile)] == ["text_encoder", "vae.encode", "unet", "vae.decode"]
    assert profile.component("vae").used_bytes == profile.component("vae").weights.allocated_bytes


def test_the_peak_of_two_linear_layers_is_their_two_widest_tensors():
    class Widen(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(128, 512, bias=False), nn.Linear(512, 128, bias=False)

        def forward(self, x):
            return self.down(self.up(x).relu())

    class Pipe(DiffusionPipeline):
        def __init__(self, model):
            super().__init__()
            self.register_modules(model=model)

        def __call__(self):
            return self.model(torch.ones(64, 128))

    recording = record_runs(Pipe(Widen()), [{}], largest_real_bytes=MIB, on_call=lambda name: None)[0]
    # Two wide tensors at the relu; then a wide and the narrow one that is returned.
    assert live_and_peak_bytes(recording.calls[0].execution) == (64 * 128 * 4, 2 * 64 * 512 * 4)


def test_fifty_steps_trace_each_component_once(device):
    begun = []
    call = {"height": 32, "width": 32, "num_inference_steps": 50}
    predict_profile(tiny_pipelines.build("sdxl"), call_kwargs=call, device=device, on_call=begun.append)
    assert begun == ["text_encoder", "text_encoder_2", "unet", "vae.decode"]


def test_a_vae_that_is_cast_up_before_it_decodes_counts_in_float32(device, predicted, caplog):
    pipe = tiny_pipelines.build("sdxl")
    in_float32 = predicted("sdxl").profile.component("vae")
    for module in modules_of(pipe).values():
        module.to(torch.float16)
    pipe.vae.register_to_config(force_upcast=True)
    before = state_of(pipe)
    caplog.clear()
    profile = predict(pipe, "sdxl", device)
    assert not caplog.records  # diffusers warns of the cast: not while a call is only followed
    assert profile.component("vae").groups == in_float32.groups
    assert (profile.component("vae").dtype, profile.component("unet").dtype) == ("float32", "float16")
    assert state_of(pipe) == before
    # Weights do not count as the pipeline's own memory.
    assert max(stage.pipeline_bytes for stage in profile.stages) < in_float32.weights.num_bytes


def test_tiling_is_a_variant_where_it_saves_memory(device):
    pipe = tiny_pipelines.build("wan")
    pipe.vae.tile_sample_min_height = pipe.vae.tile_sample_min_width = 128
    pipe.vae.tile_sample_stride_height = pipe.vae.tile_sample_stride_width = 120
    profile = predict(pipe, "wan", device, height=240, width=240, num_frames=1, num_inference_steps=1)
    (variant,) = profile.variants
    assert variant.permissions == ("vae_tiling",)
    assert variant.stages[-1].activation_bytes < profile.stages[-1].activation_bytes
    assert variant.stages[:-1] == profile.stages[:-1]
    assert pipe.vae.use_tiling is False


def test_float8_is_a_variant_where_it_is_looked_for_and_one_with_tiling(device):
    pipe = tiny_pipelines.build("wan")
    nn.Module.to(pipe.transformer, torch.bfloat16)
    pipe.vae.tile_sample_min_height = pipe.vae.tile_sample_min_width = 128
    pipe.vae.tile_sample_stride_height = pipe.vae.tile_sample_stride_width = 120
    call = {"height": 240, "width": 240, "num_frames": 1, "num_inference_steps": 1, "prompt": "a fox"}
    before = state_of(pipe)
    profile = predict_profile(pipe, call_kwargs=call, device=device, allow=["fp8_weights"])
    assert state_of(pipe) == before
    tiled, stored, both = (profile.under(variant.permissions) for variant in profile.variants)
    ways = [("vae_tiling",), ("fp8_weights",), ("vae_tiling", "fp8_weights")]
    assert [variant.permissions for variant in profile.variants] == ways
    assert profile.under(("fp8_weights", "vae_tiling")) == both
    assert both.components == stored.components
    assert both.stages == (*stored.stages[:-1], tiled.stages[-1])
    assert both.component("transformer").weights.num_bytes < profile.component("transformer").weights.num_bytes
    assert from_json(Profile, to_json(profile)) == profile


def test_tiling_that_saves_nothing_is_not_a_variant(predicted):
    assert predicted("sd15").profile.variants == ()


def test_a_profile_holds_its_call_its_offload_sequence_and_its_versions(device):
    profile = predict(tiny_pipelines.build("sdxl"), "sdxl", device, target_size=(32, 32), generator=torch.Generator())
    assert profile.offload_sequence[:2] == ("text_encoder", "text_encoder_2")
    assert profile.workload.call_kwargs["prompt"] == "a cat"
    assert profile.workload.call_kwargs["target_size"] == [32, 32]
    assert profile.workload.call_kwargs["generator"] == "<Generator>"  # no address: equal calls are equal
    assert profile.versions["torch"] == torch.__version__


def test_pipelines_see_the_real_signatures_of_their_components(device, monkeypatch):
    seen = []
    pipe = tiny_pipelines.build("sd15")

    def note(self, latents, *args, **kwargs):
        seen.append(list(inspect.signature(self.unet.forward).parameters))
        return original(self, latents, *args, **kwargs)

    original = type(pipe).prepare_latents
    monkeypatch.setattr(type(pipe), "prepare_latents", note)
    predict(pipe, "sd15", device)
    assert seen[0][:3] == ["sample", "timestep", "encoder_hidden_states"]


def test_flux_at_real_size_has_its_known_peak_and_flops():
    with init_empty_weights():
        transformer = FluxTransformer2DModel(guidance_embeds=True)
    transformer.to(torch.bfloat16).eval()
    others = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = FluxPipeline(scheduler=FlowMatchEulerDiscreteScheduler(), transformer=transformer, **others)
    pipe.set_progress_bar_config(disable=True)
    prompt = {"prompt_embeds": (1, 512, 4096), "pooled_prompt_embeds": (1, 768)}
    embeds = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in prompt.items()}
    call = {"height": 1024, "width": 1024, "num_inference_steps": 2, "output_type": "latent", **embeds}
    (first, second) = record(pipe, **call).calls
    assert first.execution is second.execution
    assert 463 * MIB < live_and_peak_bytes(first.execution)[1] < 469 * MIB
    flops = sum(entry.flops for entry in first.execution.tape if isinstance(entry, Work))
    assert flops == pytest.approx(74.4e12, rel=1e-3)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_call_that_needs_another_one_first_is_followed_with_it(device):
    family = FAMILIES["ledits"]
    pipe, call, kept = family.pipe(), family.inputs(), ("init_latents", "zs")
    followed = predict_profile(pipe, call_kwargs=call, first={"invert": family.inversion()}, device=device)
    assert not any(hasattr(pipe, name) for name in kept)
    family.prepare(pipe)
    inverted = predict_profile(pipe, call_kwargs=call, device=device)
    assert [stage.activities for stage in followed.stages] == [stage.activities for stage in inverted.stages]
    left_bytes = sum(getattr(pipe, name).nbytes for name in kept)  # by the real inversion, on the host
    for whole, alone in zip(followed.stages, inverted.stages, strict=True):
        assert whole.pipeline_bytes - alone.pipeline_bytes >= left_bytes


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("first", "message"),
    [
        (3, r"`first` are methods by name with their arguments"),
        ({"invert": 3}, r"`call_kwargs` are arguments by name"),
        ({"invertt": {}}, r"has no method 'invertt'"),
        ({"invert": {"imag": 1}}, r"does not accept these arguments: .* It accepts image, "),
    ],
)
def test_methods_to_call_first_are_checked_like_the_call(first, message, device):
    with pytest.raises(UsageError, match=message):
        predict_profile(FAMILIES["ledits"].pipe(), call_kwargs={}, first=first, device=device)


def test_each_traced_call_is_logged_once_at_debug_level(device, caplog):
    with caplog.at_level(logging.DEBUG, logger="vramtune"):
        predict(tiny_pipelines.build("sd15"), "sd15", device)
    lines = [record.getMessage() for record in caplog.records if record.name == "vramtune.profiler.record"]
    assert [line.partition(" in ")[0] for line in lines] == ["traced text_encoder", "traced unet", "traced vae.decode"]


# ---------------------------------------------------------------------------------------------------
# Bad input


def test_an_object_that_is_not_a_pipeline_is_refused(device):
    with pytest.raises(UsageError, match="Expected a diffusers pipeline; got Linear"):
        predict_profile(nn.Linear(1, 1), call_kwargs={}, device=device)


def test_an_unknown_argument_is_refused_with_the_known_ones(device):
    with pytest.raises(UsageError, match=r"FluxPipeline does not accept these arguments: .*'hight'.*height"):
        predict_profile(tiny_pipelines.build("flux"), call_kwargs={"hight": 32}, device=device)


@pytest.mark.parametrize(
    ("call_kwargs", "message"),
    [
        ({"height": 33}, "divisible by 8 but are 33"),
        ({"prompt": 5}, "has to be of type"),
        ({"num_inference_steps": "x"}, ""),
    ],
)
def test_an_argument_that_the_pipeline_refuses_is_refused_with_its_reason(call_kwargs, message, device):
    pipe = tiny_pipelines.build("sd15")
    before = state_of(pipe)
    with pytest.raises(UsageError, match=f"StableDiffusionPipeline refused the call.*{message}") as caught:
        predict(pipe, "sd15", device, **call_kwargs)
    assert caught.value.__cause__ is not None
    assert state_of(pipe) == before


def test_pictures_that_may_be_lacking_are_named(device):
    pipe = StableDiffusionImg2ImgPipeline.from_pipe(tiny_pipelines.build("sd15"))
    with pytest.raises(UsageError, match=r"refused the call.* takes image: pass what it needs in `call_kwargs`"):
        predict_profile(pipe, call_kwargs={}, device=device)


def test_an_optional_package_that_the_pipeline_needs_is_named(device, monkeypatch):
    class Cleaning(StableDiffusionXLPipeline):
        def encode_prompt(self, *args, **kwargs):
            return ftfy.fix_text("as Wan's image pipeline does")  # noqa: F821

    monkeypatch.setattr(import_utils, "_ftfy_available", False)
    with pytest.raises(UsageError, match=r"Cleaning needs the package ftfy.*`pip install ftfy`"):
        predict(Cleaning(**tiny_pipelines.build("sdxl").components), "sdxl", device)


def test_a_component_that_reads_values_is_named_in_the_error(device):
    pipe = tiny_pipelines.build("sd15")
    block = pipe.unet.mid_block.resnets[0]
    original = block.forward
    block.forward = lambda x, *args: original(x * x.max().item(), *args)
    before = state_of(pipe)
    with pytest.raises(TraceError, match=r"Cannot predict unet\.forward: DataDependentOutputException.*mid_block"):
        predict(pipe, "sd15", device)
    assert state_of(pipe) == before


def test_a_component_whose_layers_do_not_match_is_named_in_the_error_and_nothing_is_logged(device, caplog):
    pipe = tiny_pipelines.build("sd15")
    pipe.unet.conv_out = nn.Conv2d(3, 4, 1)
    with pytest.raises(TraceError, match=r"RuntimeError in its module 'conv_out', .*: .*[^.]\. Prediction runs it"):
        predict(pipe, "sd15", device)
    assert caplog.text == ""


def test_a_large_constant_of_the_pipelines_own_is_never_materialised(device):
    class Padding(StableDiffusionXLPipeline):
        def encode_prompt(self, *args, **kwargs):
            padding = torch.zeros(2**40, dtype=torch.float32)  # 4 TiB
            self.sum = padding.sum()
            return super().encode_prompt(*args, **kwargs)

    pipe = Padding(**tiny_pipelines.build("sdxl").components)
    first, *_ = predict(pipe, "sdxl", device).stages
    assert first.pipeline_bytes >= 2**42


def test_a_pipeline_that_reads_large_outputs_of_components_gets_zeros(device):
    class Masking(StableDiffusionXLPipeline):
        def encode_prompt(self, *args, **kwargs):
            outputs = super().encode_prompt(*args, **kwargs)
            assert outputs[0][outputs[0] > 0].numel() == 0
            return outputs

    pipe = Masking(**tiny_pipelines.build("sdxl").components)
    pipe.set_progress_bar_config(disable=True)
    # 150 prompts: embeddings above one mebibyte.
    profile = predict(pipe, "sdxl", device, prompt=["a cat"] * 150, num_inference_steps=3)
    assert stages_of(profile)[-2:] == [("unet", 3), ("vae.decode", 1)]


KEPT: list[torch.Tensor] = []
"""At the module's level: what a function remembers is copied with its pipeline."""


def test_a_cache_that_the_first_step_fills_is_followed_once_and_then_found(device):
    """Qwen-Image's positions."""

    def caching(forward):
        def remembers(*args, **kwargs):
            outputs = forward(*args, **kwargs)
            if not KEPT:
                KEPT.append(outputs[0].repeat(2**10, 1, 1, 1))
            return outputs

        return remembers

    pipe, begun = tiny_pipelines.build("sd15"), []
    pipe.unet.forward = caching(pipe.unet.forward)
    call = {"prompt": "a cat", "num_inference_steps": 6, **tiny_pipelines.CALL["sd15"]}
    try:
        predict_profile(pipe, call_kwargs=call, device=device, on_call=begun.append)
    finally:
        KEPT.clear()
    assert begun.count("unet") == 2


@pytest.mark.parametrize("are_left", [False, True], ids=["taken away", "left there"])
def test_what_a_component_leaves_elsewhere_than_in_its_outputs_is_there_after_each_call_and_counts(are_left, device):
    """A pipeline that edits by attention maps has its unet keep them and reads them after each step."""

    def keeping(forward):
        def keeps(*args, **kwargs):
            outputs = forward(*args, **kwargs)
            KEPT.append(outputs[0].repeat(2**10, 1, 1, 1))
            return outputs

        return keeps

    def read(pipe, step, timestep, tensors):
        nonlocal num_bytes
        num_bytes += KEPT[-1].nbytes
        if not are_left:
            KEPT.pop()
        return {}

    num_bytes = 0
    pipe = tiny_pipelines.build("sd15")
    pipe.unet.forward = keeping(pipe.unet.forward)
    try:
        profile = predict(pipe, "sd15", device, callback_on_step_end=read)
    finally:
        KEPT.clear()
    assert stages_of(profile) == [("text_encoder", 2), ("unet", 4), ("vae.decode", 1)]
    decode = profile.stages[-1]
    assert num_bytes > 20 * MIB
    assert (decode.pipeline_bytes >= num_bytes) == are_left
    assert are_left or decode.pipeline_bytes < MIB
