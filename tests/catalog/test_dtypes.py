import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from vramtune.catalog.dtypes import MAX_HEADER_BYTES, header_counts, stored_dtypes
from vramtune.errors import FileError


def dtype_of(counts: dict[str, int]) -> torch.dtype:
    return stored_dtypes(["unet/model.safetensors"], counts_of=lambda name: Counter(counts))["unet"]


@given(st.integers(1, 10**11), st.integers(1, 10**11).map(lambda n: 2 * n + 1))
def test_a_component_has_the_dtype_of_most_numbers(some: int, odd: int) -> None:
    counts = {"BF16": 2 * some, "F32": odd}
    assert dtype_of(counts) == (torch.bfloat16 if 2 * some > odd else torch.float32)


@pytest.mark.parametrize("counts", [{}, {"I64": 77}, {"F8_E4M3": 1000, "I64": 1}])
def test_a_component_without_floating_numbers_is_float32(counts: dict[str, int]) -> None:
    assert dtype_of(counts) == torch.float32


def test_integers_and_float8_do_not_decide_the_dtype() -> None:
    assert dtype_of({"F8_E4M3": 1000, "U8": 5000, "BF16": 10}) == torch.bfloat16


@pytest.mark.parametrize(
    ("file_names", "read"),
    [
        (["m.safetensors", "m.fp16.safetensors", "m.non_ema.safetensors"], ["m.safetensors"]),
        (["m.fp16.safetensors"], ["m.fp16.safetensors"]),
        (
            ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors", "m.fp16.safetensors"],
            ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"],
        ),
        (
            ["m.fp16-00002-of-00002.safetensors", "m.fp16-00001-of-00002.safetensors"],
            ["m.fp16-00001-of-00002.safetensors", "m.fp16-00002-of-00002.safetensors"],
        ),
        (["m.bin", "config.json", "m.safetensors.index.json"], []),
    ],
)
def test_the_plain_variant_is_read_with_all_its_parts(file_names: list[str], read: list[str]) -> None:
    asked: list[str] = []

    def counts_of(name: str) -> Counter[str]:
        asked.append(name)
        return Counter({"F16": 1})

    dtypes = stored_dtypes([f"vae/{name}" for name in file_names], counts_of=counts_of)
    assert asked == [f"vae/{name}" for name in read]
    assert dtypes == ({"vae": torch.float16} if read else {})


def test_a_header_counts_numbers_by_their_dtype(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    tensors = {"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.bfloat16), "c": torch.zeros(())}
    save_file(tensors, file, metadata={"format": "pt"})
    assert header_counts(file) == {"F32": 13, "BF16": 5}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01\x02",
        (10).to_bytes(8, "little") + b"not json!!",
        (2).to_bytes(8, "little") + b"[]",
        (14).to_bytes(8, "little") + json.dumps({"a": {"x": 1}}).encode(),
        (MAX_HEADER_BYTES + 1).to_bytes(8, "little"),
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_a_damaged_safetensors_file_is_named_in_the_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(FileError, match=r"model\.safetensors"):
        header_counts(file)
