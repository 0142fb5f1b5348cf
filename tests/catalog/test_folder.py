import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from tests.catalog.built import modules
from tests.tiny_pipelines import CALL, build
from vramtune import catalog
from vramtune.errors import FileError, UsageError


def save(name: str, folder: Path, *, dtype: torch.dtype = torch.float32, **options: Any) -> str:
    """A tiny pipeline in a folder; its path."""
    pipe = build(name)
    for module in modules(pipe).values():
        torch.nn.Module.to(module, dtype)
    pipe.save_pretrained(folder, **options)
    return str(folder)


def tensors(module: torch.nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    named = [*module.named_parameters(), *module.named_buffers()]
    return {path: (tensor.shape, tensor.dtype) for path, tensor in named}


def edit(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.parametrize("name", CALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_folder_gives_what_diffusers_would_load(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = save(name, tmp_path, dtype=dtype)
    pipe, real = catalog.load(folder), DiffusionPipeline.from_pretrained(folder, dtype=dtype)
    assert type(pipe) is type(real)
    assert {n: type(p) for n, p in pipe.components.items()} == {n: type(p) for n, p in real.components.items()}
    for component, module in modules(real).items():
        empty = getattr(pipe, component)
        assert tensors(empty) == tensors(module)
        assert all(parameter.is_meta for parameter in empty.parameters())
        assert not empty.training
    assert pipe.scheduler.config == real.scheduler.config


def test_settings_of_a_saved_pipeline_are_kept(tmp_path: Path) -> None:
    pipe = catalog.load(save("wan22", tmp_path))
    assert pipe.config.boundary_ratio == 0.5


@pytest.mark.parametrize("name", ["sd3", "wan"])
def test_a_folder_is_loaded_without_reading_weights(name: str, tmp_path: Path) -> None:
    folder = save(name, tmp_path, dtype=torch.bfloat16)
    for file in tmp_path.glob("*/*.safetensors"):
        with file.open("rb") as stream:
            header_bytes = 8 + int.from_bytes(stream.read(8), "little")
        os.truncate(file, header_bytes)
    for component, module in modules(catalog.load(folder)).items():
        assert module.dtype == torch.bfloat16, component


def test_a_component_in_several_files_has_the_dtype_of_all(tmp_path: Path) -> None:
    folder = save("sd3", tmp_path, dtype=torch.float16, max_shard_size="20KB")
    assert len([*tmp_path.glob("transformer/*-of-*.safetensors")]) > 1
    assert catalog.load(folder).transformer.dtype == torch.float16


def test_of_two_variants_the_plain_one_gives_the_dtype(tmp_path: Path) -> None:
    save("sd15", tmp_path, dtype=torch.float16, variant="fp16")
    assert catalog.load(str(tmp_path)).unet.dtype == torch.float16
    save("sd15", tmp_path)
    assert catalog.load(str(tmp_path)).unet.dtype == torch.float32


def test_a_component_without_safetensors_is_float32(tmp_path: Path) -> None:
    folder = save("sd15", tmp_path, dtype=torch.float16, safe_serialization=False)
    pipe = catalog.load(folder)
    assert pipe.unet.dtype == torch.float32
    assert pipe.text_encoder.dtype == torch.float16  # transformers writes safetensors whatever is asked


def test_the_safety_checker_of_a_folder_is_left_out(tmp_path: Path) -> None:
    folder = save("sd15", tmp_path)
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    edit(tmp_path / "model_index.json", safety_checker=checker, requires_safety_checker=True)
    pipe = catalog.load(folder)
    assert pipe.safety_checker is None
    assert not pipe.config.requires_safety_checker


def test_a_tied_weight_of_a_folder_stays_tied(tmp_path: Path) -> None:
    encoder = catalog.load(save("flux", tmp_path, dtype=torch.bfloat16)).text_encoder_2
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight


def test_a_folder_without_an_index_is_refused_with_its_content(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "unet").mkdir()
    with pytest.raises(UsageError, match=r"save_pretrained.*no model_index\.json \(found: config\.json, unet\)"):
        catalog.load(str(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"_class_name": ["pipeline", "Mine"]}'])
def test_a_damaged_index_is_named_in_the_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(FileError, match=r"model_index\.json.*damaged"):
        catalog.load(str(tmp_path))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"_class_name": "NoSuchPipeline"}, "NoSuchPipeline.*diffusers"),
        ({"_class_name": "AutoencoderKL"}, "Cannot build.*AutoencoderKL"),
        ({"unet": ["diffusers", "NoSuchModel"]}, "unet.*NoSuchModel.*diffusers"),
        ({"unet": ["my_library", "Model"]}, "unet.*Model.*my_library"),
    ],
)
def test_an_unknown_class_is_named_in_the_error(entries: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = save("sd15", tmp_path)
    edit(tmp_path / "model_index.json", **entries)
    with pytest.raises(UsageError, match=message):
        catalog.load(folder)


def test_a_component_without_a_configuration_is_named_in_the_error(tmp_path: Path) -> None:
    folder = save("sd15", tmp_path)
    (tmp_path / "unet" / "config.json").unlink()
    with pytest.raises(UsageError, match=r"'unet' has no config\.json"):
        catalog.load(folder)


def test_a_missing_tokenizer_is_named_in_the_error(tmp_path: Path) -> None:
    folder = save("sd15", tmp_path)
    (tmp_path / "tokenizer").rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="'tokenizer' is missing: there is no folder"):
        catalog.load(folder)


@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json", "text_encoder/config.json"])
def test_a_damaged_configuration_is_a_usage_error(file: str, tmp_path: Path) -> None:
    folder = save("sd15", tmp_path)
    (tmp_path / file).write_text("{")
    with pytest.raises(UsageError, match=rf"Cannot build the pipeline|{file}.*damaged"):
        catalog.load(folder)


def test_a_damaged_weight_file_is_named_in_the_error(tmp_path: Path) -> None:
    folder = save("sd15", tmp_path)
    next(tmp_path.glob("vae/*.safetensors")).write_bytes(b"oh no")
    with pytest.raises(FileError, match=r"vae.*safetensors"):
        catalog.load(folder)


def test_a_quantized_component_is_refused(tmp_path: Path) -> None:
    folder = save("sd15", tmp_path)
    edit(tmp_path / "unet" / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(UsageError, match="'unet' is quantized"):
        catalog.load(folder)


def test_an_index_without_a_component_is_a_usage_error(tmp_path: Path) -> None:
    folder = save("sd15", tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    del index["unet"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match=r"Cannot build.*unet"):
        catalog.load(folder)
