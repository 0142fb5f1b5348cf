"""The weights of a GGUF file, mapped as safetensors' are: diffusers copies them into memory.

`load_gguf_checkpoint` in `diffusers/models/model_loading_utils.py` reads each tensor with `.copy()`; the rest is as there.
"""

from pathlib import Path

import torch

from vramtune.errors import FileError, UsageError


def mapped_gguf(file: Path) -> dict[str, torch.Tensor]:
    """Tensors by name, over the file's bytes; those in blocks are diffusers' `GGUFParameter`.

    They are mapped privately: what is written to one stays in memory. Raises a `FileError` for a file that is cut off or no
    GGUF file, a `UsageError` for types that diffusers does not read, and where the package gguf is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise UsageError(f"To read {file.name!r} the package gguf is needed: pip install gguf.") from error
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES, GGUFParameter

    try:
        reader = gguf.GGUFReader(file, "c")
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise FileError(f"{str(file)!r} is cut off, or no GGUF file: {error}. Download it again.") from error
    plain = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
    tensors: dict[str, torch.Tensor] = {}
    for read in reader.tensors:
        kind = read.tensor_type
        if kind not in (*plain, *SUPPORTED_GGUF_QUANT_TYPES):
            raise UsageError(f"{str(file)!r} has weights of the type {kind.name}, which diffusers does not read.")
        if read.data.nbytes != read.n_bytes:
            raise FileError(f"{str(file)!r} is cut off: {read.name!r} is not whole. Download it again.")
        values = torch.from_numpy(read.data)
        tensors[read.name] = values if kind in plain else GGUFParameter(values, quant_type=kind)
    return tensors
