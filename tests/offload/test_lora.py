"""LoRA by PEFT and diffusers' own loader: the output is the untuned pipeline's with the same adapter, bit for bit."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from tests import tiny_pipelines
from tests.offload.state import output
from tests.offload.tuned_pipelines import held_bytes, planned, resident_bytes, tuned
from vramtune import autotune
from vramtune.contract import modules_of
from vramtune.offload.install import install

pytestmark = [
    pytest.mark.usefixtures("no_garbage"),
    pytest.mark.filterwarnings("ignore:Already unmerged:UserWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
]
DENOISER = {"flux": "transformer", "sdxl": "unet"}
Step = Callable[[Any], object]


def lora(name: str, *, wrong: bool = False) -> dict[str, torch.Tensor]:
    """An adapter of the named pipeline's denoiser and first text encoder, as a file has it."""
    torch.manual_seed(1)
    pipe, state = tiny_pipelines.build(name), {}
    targets = {DENOISER[name]: ["to_q", "to_k", "to_v"], "text_encoder": ["q_proj", "v_proj"]}
    for component, modules in targets.items():
        module = getattr(pipe, component)
        module.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=modules, init_lora_weights=False))
        for path, tensor in get_peft_model_state_dict(module).items():
            is_wrong = wrong and component == DENOISER[name] and "lora_B" in path
            state[f"{component}.{path}"] = torch.zeros(len(tensor) + 1, *tensor.shape[1:]) if is_wrong else tensor
    return state


def steps(name: str) -> list[Step]:
    """What a user does one after the other."""
    state = lora(name)

    def load_wrong(pipe: Any) -> None:
        torch.manual_seed(2)  # what it leaves in the modules is random
        with pytest.raises(RuntimeError, match="size mismatch"):
            pipe.load_lora_weights(lora(name, wrong=True), adapter_name="wrong")

    return [
        lambda pipe: pipe.load_lora_weights(dict(state), adapter_name="a"),
        lambda pipe: pipe.fuse_lora(),
        lambda pipe: pipe.unfuse_lora(),
        lambda pipe: pipe.set_adapters("a", 0.5),
        lambda pipe: pipe.unload_lora_weights(),
        load_wrong,
        lambda pipe: pipe.unload_lora_weights(),
        lambda pipe: pipe.load_lora_weights(dict(state), adapter_name="b"),
    ]


@pytest.mark.parametrize(
    ("name", "fraction"),
    [
        ("flux", 0.4),
        pytest.param("flux", 0.7, marks=pytest.mark.slow),
        pytest.param("sdxl", 0.4, marks=pytest.mark.slow),
        ("sdxl", 0.7),
    ],
)
def test_every_step_of_an_adapters_life_gives_the_untuned_output(sim: ModuleType, name: str, fraction: float) -> None:
    untuned = tiny_pipelines.build(name).to("sim")
    wanted = [output(untuned, name)]
    for step in steps(name):
        step(untuned)
        wanted.append(output(untuned, name))
    assert not torch.equal(wanted[0], wanted[1])
    del untuned
    start = held_bytes()
    with tuned(name, fraction) as (pipe, runtime):
        assert torch.equal(output(pipe, name), wanted[0])
        for number, step in enumerate(steps(name), 1):
            step(pipe)
            assert torch.equal(output(pipe, name), wanted[number]), number
            assert held_bytes() - start <= resident_bytes(runtime.plan), number
    assert held_bytes() == start
    assert {p.device.type for module in modules_of(pipe).values() for p in module.parameters()} == {"cpu"}
    assert torch.equal(output(pipe.to("sim"), name), wanted[-1])


@pytest.mark.parametrize("name", DENOISER)
def test_a_plan_made_without_it_takes_a_fused_adapter(sim: ModuleType, name: str) -> None:
    def fuse(pipe: Any) -> Any:
        pipe.load_lora_weights(lora(name))
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        return pipe

    wanted = output(fuse(tiny_pipelines.build(name)).to("sim"), name)
    pipe = fuse(tiny_pipelines.build(name))
    with install(pipe, planned(name), device="sim"):
        assert torch.equal(output(pipe, name), wanted)


@pytest.mark.parametrize("name", DENOISER)
def test_autotune_plans_for_an_adapter_that_is_there(sim: ModuleType, name: str) -> None:
    state = lora(name)
    untuned = tiny_pipelines.build(name)
    untuned.load_lora_weights(dict(state))
    wanted = output(untuned.to("sim"), name)
    pipe = tiny_pipelines.build(name)
    pipe.load_lora_weights(dict(state))
    call_kwargs = {**tiny_pipelines.CALL[name], "num_inference_steps": 2}
    with autotune(pipe, device="sim", call_kwargs=call_kwargs, progress=False) as tuned:
        runtime = tuned._runtime
        unplanned = {c.name: c.unplanned.num_bytes for c in runtime._binding.components}
        assert (unplanned[DENOISER[name]], unplanned["text_encoder"]) == (0, 0)
        assert torch.equal(output(pipe, name), wanted)
        pipe.unload_lora_weights()
        assert torch.equal(output(pipe, name), output(tiny_pipelines.build(name).to("sim"), name))
