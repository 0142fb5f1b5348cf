"""What encoders returned is kept if asked for: the same bits, by all inputs, within a bound, until the plan is removed."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import DynamicCache

from tests import tiny_pipelines
from tests.offload.state import output
from tests.offload.test_adapters import lora
from tests.offload.test_staging import plan_for
from tests.offload.tuned_pipelines import profiled
from vramtune.offload import embeddings
from vramtune.offload.embeddings import Embeddings
from vramtune.offload.install import install
from vramtune.offload.runtime import Runtime
from vramtune.tuned import Tuned
from vramtune.units import format_bytes

CALL = {"num_inference_steps": 2, "output_type": "pt", **tiny_pipelines.CALL["flux"]}
ENCODERS = ("text_encoder", "text_encoder_2")


@contextmanager
def kept(name: str = "flux", fraction: float = 0.4) -> Iterator[tuple[Any, Runtime, list[str]]]:
    """A tuned pipeline that keeps embeddings, and the names of the encoders that really run."""
    pipe, runs = tiny_pipelines.build(name), list[str]()
    for encoder in ENCODERS:
        module = getattr(pipe, encoder)
        inner = getattr(
            module, "text_model", module
        ).encoder  # hooks of the encoder itself run around what we embedding
        inner.register_forward_hook(lambda *args, encoder=encoder: runs.append(encoder))
    with install(pipe, plan_for(profiled(name), name, fraction), device="sim", cache_embeddings=True) as runtime:
        yield pipe, runtime, runs


def kept_by(runtime: Runtime) -> Embeddings:
    assert runtime._embeddings is not None
    return runtime._embeddings


@pytest.mark.parametrize("fraction", [0.4, 1.0])
@pytest.mark.parametrize("name", ["flux", "sdxl"])
def test_a_prompt_that_comes_again_gives_the_same_bits_and_runs_no_encoder(
    sim: ModuleType, no_garbage: None, expected: dict[str, torch.Tensor], name: str, fraction: float
) -> None:
    with kept(name, fraction) as (pipe, runtime, runs):
        assert torch.equal(output(pipe, name), expected[name])
        assert set(runs) == set(ENCODERS)
        runs.clear()
        for _ in range(2):
            assert torch.equal(output(pipe, name), expected[name])
        assert runs == []
        assert runtime.measured is not None
        assert all("text_encoder" not in stage.name for stage in runtime.measured.stages)


def test_another_prompt_runs_them_and_the_first_is_still_known(sim: ModuleType, no_garbage: None) -> None:
    with kept() as (pipe, _, runs):
        output(pipe, "flux")
        pipe("a dog", **CALL)
        assert runs.count("text_encoder") == 2
        output(pipe, "flux")
        assert runs.count("text_encoder") == 2


def test_without_asking_for_it_nothing_is_kept(sim: ModuleType, no_garbage: None) -> None:
    pipe, runs = tiny_pipelines.build("flux"), list[None]()
    pipe.text_encoder.embeddings.register_forward_hook(lambda *args: runs.append(None))
    with install(pipe, plan_for(profiled("flux"), "flux"), device="sim"):
        output(pipe, "flux")
        output(pipe, "flux")
    assert len(runs) == 2


def test_all_inputs_count(sim: ModuleType, no_garbage: None) -> None:
    with kept() as (pipe, _, runs), torch.no_grad():
        ids = torch.ones(1, 4, dtype=torch.int64, device="sim")
        mask = torch.tensor([[1, 1, 1, 0]], device="sim")
        for call in (
            {},
            {"attention_mask": mask},
            {"attention_mask": mask.bool()},
            {"output_hidden_states": True},
            {"output_hidden_states": False},
            {"return_dict": False},
        ):
            first = pipe.text_encoder_2(ids, **call)
            runs.clear()
            again = pipe.text_encoder_2(ids, **call)
            assert runs == []
            assert type(again) is type(first)
            assert torch.equal(again[0], first[0])
            runs.clear()
            pipe.text_encoder_2(ids.clone(), **call)
            assert runs == []
        runs.clear()
        pipe.text_encoder_2(ids + 1)
        pipe.text_encoder_2(ids.repeat(2, 1))
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        pipe.text_encoder_2(ids)
        torch.set_float32_matmul_precision(precision)
        assert len(runs) == 3


def test_an_embedding_that_a_pipeline_writes_to_is_given_as_it_was(sim: ModuleType, no_garbage: None) -> None:
    with kept() as (pipe, _, _), torch.no_grad():
        ids = torch.ones(1, 4, dtype=torch.int64, device="sim")
        first = pipe.text_encoder_2(ids)[0]
        want = first.clone()
        for _ in range(2):
            again = pipe.text_encoder_2(ids)[0]
            assert torch.equal(again, want)
            assert again.device == first.device
            again.zero_()


@pytest.mark.parametrize("fraction", [0.4, 1.0])
def test_an_encoder_that_was_edited_runs_again(sim: ModuleType, no_garbage: None, fraction: float) -> None:
    want = tiny_pipelines.build("flux")
    with kept(fraction=fraction) as (pipe, _, runs):
        output(pipe, "flux")
        for edited in (want, pipe):
            with torch.no_grad():
                edited.text_encoder.embeddings.token_embedding.weight.mul_(1.5)
                block = edited.text_encoder_2.encoder.block[0].layer[0].SelfAttention
                block.q.weight.data = block.q.weight.data * 2
        runs.clear()
        assert torch.equal(output(pipe, "flux"), output(want.to("sim"), "flux"))
        assert set(runs) == set(ENCODERS)


@pytest.mark.parametrize("fraction", [0.4, 1.0])
def test_an_encoder_into_which_a_lora_was_fused_between_two_calls_runs_again(
    sim: ModuleType, no_garbage: None, fraction: float
) -> None:
    want = tiny_pipelines.build("flux")
    with kept(fraction=fraction) as (pipe, _, runs):
        output(pipe, "flux")
        for edited in (want, pipe):
            edited.load_lora_weights(dict(lora("flux")), adapter_name="a")
            edited.fuse_lora()
            edited.unload_lora_weights()
        runs.clear()
        assert torch.equal(output(pipe, "flux"), output(want.to("sim"), "flux"))
        assert "text_encoder" in runs


def test_an_encoder_with_an_adapter_always_runs(sim: ModuleType, no_garbage: None) -> None:
    with kept() as (pipe, _, runs):
        output(pipe, "flux")
        pipe.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        runs.clear()
        first = output(pipe, "flux")
        for module in pipe.text_encoder.modules():
            if hasattr(module, "scaling"):
                module.scaling["default"] *= 3
        second = output(pipe, "flux")
        assert runs.count("text_encoder") == 2
        assert not torch.equal(first, second)


def test_an_encoder_in_training_always_runs(sim: ModuleType, no_garbage: None) -> None:
    with kept() as (pipe, _, runs), torch.no_grad():
        pipe.text_encoder_2.train()
        ids = torch.ones(1, 4, dtype=torch.int64, device="sim")
        pipe.text_encoder_2(ids)
        pipe.text_encoder_2(ids)
        assert len(runs) == 2


def test_other_components_are_not_kept(sim: ModuleType, no_garbage: None) -> None:
    with kept() as (pipe, runtime, _):
        output(pipe, "flux")
        assert {component for component, _, _ in kept_by(runtime)._by_key} == set(ENCODERS)


def test_what_is_kept_stays_within_the_bound_and_the_oldest_goes(
    sim: ModuleType, no_garbage: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kept() as (pipe, runtime, runs), torch.no_grad():
        ids = torch.ones(1, 4, dtype=torch.int64, device="sim")
        pipe.text_encoder_2(ids)
        monkeypatch.setattr(embeddings, "MOST_BYTES", 3 * kept_by(runtime).num_bytes)
        for prompt in range(2, 6):
            pipe.text_encoder_2(prompt * ids)
            assert kept_by(runtime).num_bytes <= embeddings.MOST_BYTES
        runs.clear()
        pipe.text_encoder_2(5 * ids)
        assert runs == []
        pipe.text_encoder_2(ids)
        assert len(runs) == 1
        runs.clear()
        before = kept_by(runtime).num_bytes
        for _ in range(2):
            pipe.text_encoder_2(ids.repeat(9, 1))
        assert len(runs) == 2, "larger than the bound"
        assert kept_by(runtime).num_bytes == before, "nothing goes for what is not kept"


def test_what_is_kept_is_beside_the_weights_and_the_handle_says_how_much(sim: ModuleType, no_garbage: None) -> None:
    with kept() as (pipe, runtime, _):
        output(pipe, "flux")
        shown = repr(Tuned(runtime, None))
        assert re.search(rf"embeddings kept +{format_bytes(kept_by(runtime).num_bytes)} +measured", shown), shown
    assert runtime.embedding_bytes == 0
    with install(pipe, runtime.plan, device="sim") as runtime:
        assert runtime.embedding_bytes is None
        assert "embeddings" not in repr(Tuned(runtime, None))


def test_nothing_is_left_after_remove(sim: ModuleType, no_garbage: None) -> None:
    with kept() as (pipe, runtime, _):
        output(pipe, "flux")
        assert kept_by(runtime).num_bytes > 0
    assert kept_by(runtime).num_bytes == 0


def test_embeddings_keep_their_structure_and_which_tensors_are_one() -> None:
    values = torch.arange(6.0).reshape(2, 3).t()
    cache = DynamicCache()
    cache.update(torch.ones(1, 1, 2, 3), torch.zeros(1, 1, 2, 3), 0)
    writer = embeddings._Writer()
    writer.dump({"a": values, "b": (values, None, [values + 1]), "cache": cache})
    embedding = embeddings.Embedding(None, (), writer.stream.getvalue(), writer.tensors)  # type: ignore[arg-type]
    read = embeddings._Reader(embedding).load()
    assert read["a"] is read["b"][0] is not values
    assert torch.equal(read["a"], values)
    assert read["a"].stride() == values.stride()
    assert torch.equal(read["b"][2][0], values + 1)
    assert torch.equal(read["cache"].layers[0].keys, torch.ones(1, 1, 2, 3))
