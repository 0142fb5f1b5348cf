"""The dtype of weights: set on empty modules, and read from the headers of weight files."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch

from vramtune.errors import FileError

MAX_HEADER_BYTES = 2**24  # some hundred thousand tensors; safetensors' own limit is 100 MB
# safetensors' names (https://huggingface.co/docs/safetensors); no arithmetic is done in the others (integers, float8)
TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def cast(module: torch.nn.Module, *, dtype: torch.dtype) -> None:
    """Give parameters and saved buffers the dtype that `from_pretrained(dtype=dtype)` gives them.

    Buffers that weight files do not hold keep their dtype, and so do modules that the class keeps in float32.
    Parameters stay the same objects, so that tied ones stay tied.
    """
    in_float32 = kept_in_float32(module, dtype=dtype)
    for path, tensor in module.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if in_float32 & set(path.split(".")) else dtype)


def kept_in_float32(module: Any, *, dtype: torch.dtype) -> set[str]:
    """Names in paths of weights of a module, or of a class of modules, that stay in float32.

    `_keep_in_fp32_modules` applies to float16 only in `transformers/modeling_utils.py` (whose `..._strict` applies to
    any dtype), and to any dtype in `diffusers/models/modeling_utils.py`.
    """
    kept = set(module._keep_in_fp32_modules or ())
    if not hasattr(module, "_keep_in_fp32_modules_strict"):
        return kept
    strict = set(module._keep_in_fp32_modules_strict or ())
    return strict | kept if dtype == torch.float16 else strict


def stored_dtypes(file_names: Iterable[str], *, counts_of: Callable[[str], Counter[str]]) -> dict[str, torch.dtype]:
    """The floating dtype of most numbers in each component's safetensors files.

    Names are relative to the pipeline: `unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors`. Where there
    are variants, the plain one counts, as when loading. `counts_of` returns a file's numbers by safetensors dtype.
    """
    variants: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(file_names):
        component, _, file = name.rpartition("/")
        if file.endswith(".safetensors"):
            variants[component][re.sub(r"-\d+-of-\d+", "", file)].append(name)
    return {
        component: majority(sum(map(counts_of, files[min(files, key=len)]), Counter()))
        for component, files in variants.items()
    }


def majority(counts: Counter[str]) -> torch.dtype:
    """The floating dtype of most numbers, of how many there are of each safetensors dtype; float32 where there are none."""
    floating = Counter({name: number for name, number in counts.items() if name in TORCH_DTYPES})
    return TORCH_DTYPES[floating.most_common(1)[0][0]] if floating else torch.float32


def header_counts(file: Path) -> Counter[str]:
    """How many numbers a file holds by safetensors dtype, from its header (8 bytes of length, then JSON)."""
    counts: Counter[str] = Counter()
    try:
        for name, written in _header(file).items():
            if name != "__metadata__":
                tensor = msgspec.json.decode(written, type=_Tensor)
                counts[tensor.dtype] += math.prod(tensor.shape)
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise FileError(f"{str(file)!r} is damaged or not a safetensors file ({error}).") from error
    return counts


def data_bytes(file: Path) -> int:
    """How many bytes a safetensors file has by its header."""
    try:
        written = _header(file)
        with file.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
        places = (msgspec.json.decode(raw, type=_Place) for name, raw in written.items() if name != "__metadata__")
        return 8 + header_bytes + max((place.data_offsets[1] for place in places), default=0)
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise FileError(f"{str(file)!r} is damaged or not a safetensors file ({error}).") from error


class _Place(msgspec.Struct):
    """Where a header says that a tensor's bytes are, from the end of the header on."""

    data_offsets: tuple[int, int]


class _Tensor(msgspec.Struct):
    """What a header says of a tensor."""

    dtype: str
    shape: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0)], ...], msgspec.Meta(max_length=64)]


def _header(file: Path) -> dict[str, msgspec.Raw]:
    if not file.is_file():
        raise ValueError("not a regular file")
    with file.open("rb") as stream:
        num_bytes = int.from_bytes(stream.read(8), "little")
        if num_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {num_bytes} bytes")
        return msgspec.json.decode(stream.read(num_bytes), type=dict[str, msgspec.Raw])
