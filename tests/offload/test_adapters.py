"""What comes into a tuned pipeline, and goes again: LoRA by PEFT, an IP-Adapter, an embedding, fused projections.

After each step the output is that of an untuned pipeline with the same change, bit for bit, and the plan is one for what
is there then: the peak is within the budget, and what is copied is what that plan says.
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

import vramtune
from tests import tiny_pipelines
from tests.offload.state import output
from tests.offload.tuned_pipelines import held_bytes, planned, profiled, resident_bytes, smallest_gib
from vramtune.contract import modules_of
from vramtune.errors import UsageError
from vramtune.schema import Plan, Profile
from vramtune.tuned import Tuned

pytestmark = [
    pytest.mark.usefixtures("no_garbage"),
    pytest.mark.filterwarnings("ignore:Already unmerged:UserWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted:UserWarning"),
]
DENOISER = {"flux": "transformer", "sdxl": "unet", "sd15": "unet"}
Step = Callable[[Any], object]
State = dict[str, torch.Tensor]


@cache
def lora(name: str, *, rank: int = 4, seed: int = 1, wrong: str = "") -> State:
    """An adapter of the named pipeline's denoiser and first text encoder, as a file has it.

    `wrong` names the component whose last layer has another shape in it.
    """
    torch.manual_seed(seed)
    pipe, state = tiny_pipelines.build(name), {}
    targets = {DENOISER[name]: ["to_q", "to_k", "to_v"], "text_encoder": ["q_proj", "v_proj"]}
    for component, modules in targets.items():
        module = getattr(pipe, component)
        module.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=modules, init_lora_weights=False))
        state |= {f"{component}.{path}": tensor for path, tensor in get_peft_model_state_dict(module).items()}
        if component == wrong:
            path = [path for path in state if path.startswith(component) and "lora_B" in path][-1]
            state[path] = torch.zeros(len(state[path]) + 1, *state[path].shape[1:])
    return state


def loads(name: str, adapter: str, *, only: str = "", hotswap: bool = False, **kind: Any) -> Step:
    """Load an adapter, or only the part of it that is one component's."""

    def load(pipe: Any) -> None:
        state = {path: tensor for path, tensor in lora(name, **kind).items() if path.startswith(only)}
        pipe.load_lora_weights(state, adapter_name=adapter, hotswap=hotswap)

    return load


def fails(step: Step) -> Step:
    def failing(pipe: Any) -> None:
        torch.manual_seed(2)  # what it leaves in the modules may be random
        with pytest.raises((RuntimeError, ValueError, KeyError)):
            step(pipe)

    return failing


def image_encoder() -> CLIPVisionModelWithProjection:
    torch.manual_seed(4)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=16,
        projection_dim=16,
    )
    return CLIPVisionModelWithProjection(config).eval()


@cache
def ip_adapter(name: str) -> dict[str, State]:
    """An adapter as a file has it; its layers are numbered as the denoiser's attentions are."""
    torch.manual_seed(5)
    denoiser = getattr(tiny_pipelines.build(name), DENOISER[name])
    is_flux, attention = name == "flux", dict(denoiser.named_modules())
    width = denoiser.config.joint_attention_dim if is_flux else denoiser.config.cross_attention_dim
    inside = [path.removesuffix(".processor") for path in denoiser.attn_processors]
    numbered = enumerate(path for path in inside if not path.startswith("single")) if is_flux else enumerate(inside)
    layers = {}
    for number, path in numbered:
        if is_flux or path.endswith("attn2"):
            for kind in ("to_k_ip", "to_v_ip"):
                state = nn.Linear(width, attention[path].inner_dim, bias=is_flux).state_dict()
                layers |= {f"{number}.{kind}.{part}": tensor for part, tensor in state.items()}
    image = {f"proj.{part}": tensor for part, tensor in nn.Linear(16, 4 * width).state_dict().items()}
    image |= {f"norm.{part}": tensor for part, tensor in nn.LayerNorm(width).state_dict().items()}
    return {"image_proj": image, "ip_adapter": layers}


def loads_ip_adapter(name: str, *, broken: bool = False) -> Step:
    def load(pipe: Any) -> None:
        state = ip_adapter(name)
        if broken:
            *rest, _ = state["ip_adapter"].items()
            state = state | {"ip_adapter": dict(rest)}
        processor = CLIPImageProcessor(size=32, crop_size=32)
        pipe.register_modules(image_encoder=image_encoder().to(pipe.device), feature_extractor=processor)
        options = {} if name == "flux" else {"subfolder": "", "image_encoder_folder": None}
        pipe.load_ip_adapter(state, weight_name="", **options)

    return load


def loads_and_unloads_ip_adapter(pipe: Any) -> None:
    loads_ip_adapter("sdxl")(pipe)
    pipe.unload_ip_adapter()


def unloads_image_encoder(pipe: Any) -> None:
    pipe.image_encoder = None


def loads_an_embedding(pipe: Any) -> None:
    torch.manual_seed(6)
    width = pipe.text_encoder.get_input_embeddings().weight.shape[1]
    pipe.load_textual_inversion(torch.randn(1, width), token="cat")  # a word of the prompt


# ---------------------------------------------------------------------------------------------------
# What users do, step by step


class Case(NamedTuple):
    """What a user does with a tuned pipeline, one step after the other."""

    pipeline: str
    steps: list[Step]
    call_kwargs: Mapping[str, Any] = {}


def lora_cases(name: str) -> dict[str, Case]:
    denoiser = DENOISER[name]
    first, second = loads(name, "a"), loads(name, "b", rank=2, seed=2)
    wrong = {"seed": 3, "wrong": denoiser}
    several: list[Step] = [
        first,
        second,
        lambda pipe: pipe.set_adapters(["a", "b"], [0.5, 0.8]),
        lambda pipe: pipe.disable_lora(),
        lambda pipe: pipe.enable_lora(),
        lambda pipe: pipe.delete_adapters("a"),
        lambda pipe: pipe.unload_lora_weights(),
    ]
    fused: list[Step] = [
        first,
        lambda pipe: pipe.fuse_lora(lora_scale=0.7),
        lambda pipe: pipe.unfuse_lora(),
        lambda pipe: pipe.fuse_lora(),
        lambda pipe: pipe.unload_lora_weights(),
    ]
    swapped: list[Step] = [
        lambda pipe: pipe.enable_lora_hotswap(target_rank=8),
        loads(name, "a", only=denoiser),
        loads(name, "a", only=denoiser, hotswap=True, rank=2, seed=2),
        fails(loads(name, "nobody", only=denoiser, hotswap=True)),
    ]
    if name == "flux":  # which takes what no layer of SDXL's takes for an error
        swapped.append(fails(loads(name, "a", only=denoiser, hotswap=True, **wrong)))
    failed_in_the_encoder = fails(loads(name, "x", seed=3, wrong="text_encoder"))
    return {
        "several, scaled, off and on, deleted": Case(name, several),
        "fused, unfused, fused for good": Case(name, fused),
        "hot-swapped": Case(name, swapped),
        "failed in the denoiser": Case(
            name, [fails(loads(name, "x", **wrong)), first, fails(loads(name, "y", **wrong)), second]
        ),
        "failed in the encoder": Case(name, [failed_in_the_encoder, first]),
        "twice by one name": Case(name, [first, fails(loads(name, "a", rank=2, seed=2))]),
    }


PICTURE = {"ip_adapter_image": Image.new("RGB", (32, 32), (200, 40, 90))}
OTHERS: dict[str, Case] = {
    "IP-Adapter, sdxl": Case("sdxl", [loads_ip_adapter("sdxl"), lambda pipe: pipe.set_ip_adapter_scale(0.4)], PICTURE),
    "IP-Adapter, flux": Case("flux", [loads_ip_adapter("flux")], PICTURE),
    "IP-Adapter, unloaded": Case("sdxl", [loads_and_unloads_ip_adapter]),
    "IP-Adapter, failed": Case("sdxl", [fails(loads_ip_adapter("sdxl", broken=True)), unloads_image_encoder]),
    "textual inversion": Case("sd15", [loads_an_embedding, lambda pipe: pipe.unload_textual_inversion()]),
    "projections fused, sdxl": Case(
        "sdxl", [lambda pipe: pipe.fuse_qkv_projections(), lambda pipe: pipe.unfuse_qkv_projections()]
    ),
    "projections fused, flux": Case(
        "flux",
        [
            lambda pipe: pipe.transformer.fuse_qkv_projections(),
            lambda pipe: pipe.transformer.unfuse_qkv_projections(),
            lambda pipe: pipe.vae.fuse_qkv_projections(),
        ],
    ),
    "channels last": Case(
        "sdxl",
        [
            lambda pipe: pipe.unet.to(memory_format=torch.channels_last),
            lambda pipe: pipe.vae.to(memory_format=torch.channels_last),
            lambda pipe: pipe.unet.to(memory_format=torch.contiguous_format),
        ],
    ),
}
CASES = {f"{name}: {what}": case for name in ("flux", "sdxl") for what, case in lora_cases(name).items()} | OTHERS


QUICK = {
    ("flux: several, scaled, off and on, deleted", 0.4),
    ("textual inversion", 0.4),
    ("channels last", 0.4),
    *((what, 0.4) for what in CASES if what.startswith(("flux: failed", "IP-Adapter, unloaded"))),
}
WAYS = [
    pytest.param(case, fraction, id=f"{what}, {fraction}", marks=() if (what, fraction) in QUICK else pytest.mark.slow)
    for what, case in CASES.items()
    for fraction in (0.4, 0.7, 1.0)
]


@pytest.mark.parametrize(("case", "fraction"), WAYS)
def test_after_each_step_the_output_is_the_untuned_one_and_the_plan_is_for_what_is_there(
    sim: ModuleType, case: Case, fraction: float
) -> None:
    walk(sim, case, planned(case.pipeline, fraction), profiled(case.pipeline))


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(CASES["flux: several, scaled, off and on, deleted"], id="LoRA", marks=pytest.mark.slow),
        pytest.param(CASES["projections fused, flux"], id="fused"),
    ],
)
def test_without_the_profile_the_plan_stays_and_its_weights_give_way(sim: ModuleType, case: Case) -> None:
    walk(sim, case, planned(case.pipeline), None)


def walk(sim: ModuleType, case: Case, plan: Plan, profile: Profile | None) -> None:
    """Take a pipeline step by step, untuned and tuned."""
    name, call_kwargs = case.pipeline, dict(case.call_kwargs)
    untuned = tiny_pipelines.build(name).to("sim")
    wanted = []
    for step in case.steps:
        step(untuned)
        wanted.append(output(untuned, name, **call_kwargs))
    del untuned
    start, pipe = held_bytes(), tiny_pipelines.build(name)
    before = set(modules_of(pipe))
    sim.set_capacity(start + plan.budget_bytes)
    with vramtune.install(pipe, plan, profile=profile, device="sim") as tuned:
        output(pipe, name)
        for step, expected in zip(case.steps, wanted, strict=True):
            step(pipe)
            for is_first in (True, False):
                sim.reset()
                assert torch.equal(output(pipe, name, **call_kwargs), expected)
                check(
                    tuned,
                    start,
                    is_first=is_first,
                    came_in=set(modules_of(pipe)) - before,
                    is_known=profile is not None,
                )
        moved_back_bytes = sim.counters().moved_back_bytes
        vars(pipe).pop("_joint_attention_kwargs", None)  # in which FluxPipeline leaves the picture's embedding
    assert held_bytes() == start
    sim.set_capacity(sim.DEFAULT_CAPACITY_BYTES)
    assert {p.device.type for module in modules_of(pipe).values() for p in module.parameters()} == {"cpu"}
    sim.reset()
    assert torch.equal(output(pipe.to("sim"), name, **call_kwargs), wanted[-1])
    assert moved_back_bytes == sim.counters().moved_back_bytes


def check(tuned: Tuned, start_bytes: int, *, is_first: bool, came_in: set[str], is_known: bool) -> None:
    """The call was within the budget; a second one takes what its plan says, if no component came in."""
    measured, plan = tuned.measured, tuned.plan
    assert measured is not None
    assert is_first or measured.num_out_of_memory == 0
    assert measured.peak_bytes - start_bytes <= plan.budget_bytes
    assert held_bytes() - start_bytes <= resident_bytes(plan)
    assert {s.name for s in measured.stages if "unplanned" in s.name} <= {f"{name} (unplanned)" for name in came_in}
    if is_known and not (is_first or came_in or tuned.overrun_bytes):
        assert measured.moved_bytes == plan.estimate.moved_bytes


def test_a_plan_that_followed_goes_back_to_what_it_was(sim: ModuleType) -> None:
    pipe = tiny_pipelines.build("flux")
    plan, profile = planned("flux"), profiled("flux")
    with vramtune.install(pipe, plan, profile=profile, device="sim") as tuned:
        output(pipe, "flux")
        loads("flux", "a")(pipe)
        assert tuned.plan is plan  # until the next call
        output(pipe, "flux")
        used = {c.name: c.used_bytes for c in tuned.profile.components}
        assert used["transformer"] > profile.component("transformer").used_bytes
        assert used["vae"] == profile.component("vae").used_bytes
        pipe.unload_lora_weights()
        output(pipe, "flux")
        assert (tuned.plan, tuned.profile) == (plan, profile)


def test_a_plan_that_followed_can_be_saved_and_installed_where_the_adapter_is(sim: ModuleType, tmp_path: Path) -> None:
    pipe = tiny_pipelines.build("flux")
    with vramtune.install(pipe, planned("flux"), profile=profiled("flux"), device="sim") as tuned:
        loads("flux", "a")(pipe)
        expected = output(pipe, "flux")
        tuned.plan.save(tmp_path / "plan.json")
    with pytest.raises(UsageError, match="does not fit the pipeline"):
        vramtune.install(tiny_pipelines.build("flux"), vramtune.Plan.load(tmp_path / "plan.json"), device="sim")
    with vramtune.install(pipe, vramtune.Plan.load(tmp_path / "plan.json"), device="sim"):
        assert torch.equal(output(pipe, "flux"), expected)


def test_where_nothing_fits_any_more_one_line_says_so_and_calls_go_on(
    sim: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    """The budget is the smallest, and the simulated device has room beside it."""
    profile = profiled("flux")
    plan = vramtune.plan(profile, smallest_gib(profile))
    untuned = tiny_pipelines.build("flux").to("sim")
    loads("flux", "a", rank=128)(untuned)
    expected = output(untuned, "flux")
    pipe = tiny_pipelines.build("flux")
    with vramtune.install(pipe, plan, profile=profile, device="sim") as tuned:
        loads("flux", "a", rank=128)(pipe)
        for _ in range(2):
            assert torch.equal(output(pipe, "flux"), expected)
        assert tuned.plan is plan
    (said,) = [record.message for record in caplog.records if record.name == "vramtune.tuned"]
    assert "no plan fits" in said
    assert "Give it at least" in said


@pytest.mark.parametrize("name", ["flux", "sdxl"])
def test_a_plan_made_without_it_takes_a_fused_adapter(sim: ModuleType, name: str) -> None:
    def fuse(pipe: Any) -> Any:
        loads(name, "a")(pipe)
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        return pipe

    wanted = output(fuse(tiny_pipelines.build(name)).to("sim"), name)
    pipe = fuse(tiny_pipelines.build(name))
    with vramtune.install(pipe, planned(name), device="sim"):
        assert torch.equal(output(pipe, name), wanted)


@pytest.mark.parametrize("name", ["flux", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_autotune_plans_for_an_adapter_that_is_there(sim: ModuleType, name: str) -> None:
    untuned = tiny_pipelines.build(name)
    loads(name, "a")(untuned)
    wanted = output(untuned.to("sim"), name)
    pipe = tiny_pipelines.build(name)
    loads(name, "a")(pipe)
    call_kwargs = {**tiny_pipelines.CALL[name], "num_inference_steps": 2}
    with vramtune.autotune(pipe, device="sim", call_kwargs=call_kwargs, progress=False) as tuned:
        unplanned = {c.name: c.unplanned.num_bytes for c in tuned._runtime._binding.components}
        assert (unplanned[DENOISER[name]], unplanned["text_encoder"]) == (0, 0)
        assert torch.equal(output(pipe, name), wanted)
        pipe.unload_lora_weights()
        assert torch.equal(output(pipe, name), output(tiny_pipelines.build(name).to("sim"), name))


# ---------------------------------------------------------------------------------------------------
# While a call runs


def adds_an_adapter(pipe: Any) -> None:
    torch.manual_seed(2)
    pipe.transformer.add_adapter(LoraConfig(r=4, target_modules=["to_v"], init_lora_weights=False), "b")


def fuses_and_unloads(pipe: Any) -> None:
    pipe.fuse_lora()
    pipe.unload_lora_weights()


WHILE_RUNNING: dict[str, Step] = {
    "unloaded": lambda pipe: pipe.unload_lora_weights(),
    "deleted": lambda pipe: pipe.delete_adapters("a"),
    "fused and unloaded": fuses_and_unloads,
    "another one": adds_an_adapter,
    "fused projections": lambda pipe: pipe.transformer.fuse_qkv_projections(),
}


@pytest.mark.parametrize("fraction", [0.4, 0.8])
@pytest.mark.parametrize("what", WHILE_RUNNING)
def test_modules_that_come_in_or_go_in_a_callback_count_from_the_next_step_on(
    sim: ModuleType, what: str, fraction: float
) -> None:
    def change(pipe: Any, step: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            WHILE_RUNNING[what](pipe)
        return kwargs

    def outputs(pipe: Any) -> list[torch.Tensor]:
        loads("flux", "a", only="transformer")(pipe)
        during = output(pipe, "flux", num_inference_steps=4, callback_on_step_end=change)
        return [during, output(pipe, "flux", num_inference_steps=4)]

    expected = outputs(tiny_pipelines.build("flux").to("sim"))
    plan, profile, pipe = planned("flux", fraction), profiled("flux"), tiny_pipelines.build("flux")
    told: list[object] = []
    with vramtune.install(pipe, plan, profile=profile, device="sim", progress=False) as tuned:
        tuned._runtime.on_measured = told.append
        during, after = outputs(pipe)
        assert torch.equal(during, expected[0])
        assert torch.equal(after, expected[1])
        assert told == []
