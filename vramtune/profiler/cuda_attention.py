"""Which of CUDA's kernels attention goes to, and what each of them allocates.

`scaled_dot_product_attention` in `ATen/native/transformers/attention.cpp`, the conditions in
`ATen/native/transformers/cuda/sdp_utils.cpp`, the kernels' memory in `ATen/native/transformers/cuda/attention.cu`
(torch 2.14, compute capability 8 and more). The CPU has one fused kernel, for any mask and width.
"""

import torch
from torch.nn import functional

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)
WIDEST_FLASH_HEAD = 256
FLASH_ALIGNMENT = 8
"""A head's width is padded to a multiple of it."""
MASK_ALIGNMENT = 8
"""So are the rows of a mask, for the memory-efficient kernel."""
EFFICIENT_ALIGNMENT_BYTES = 16
"""The memory-efficient kernel takes heads whose width in bytes is a multiple of it."""
WIDEST_WITHOUT_ACCUMULATOR = 128
"""Width of a value's head up to which that kernel keeps its result in registers; wider ones in 16 bits take float32."""


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """By the kernel that CUDA chooses; arguments and result are those of PyTorch's function."""
    qkv = (query, key, value) if query.ndim != 3 else (query[None], key[None], value[None])
    if takes_flash(*qkv, attn_mask, is_causal=is_causal, enable_gqa=enable_gqa):
        out = flash(*qkv, is_causal=is_causal, scale=scale)
    elif takes_efficient(*qkv, enable_gqa=enable_gqa):
        out = efficient(*qkv, attn_mask, is_causal=is_causal, scale=scale)
    else:
        bias = additive(attn_mask, query.dtype)
        out = aten._scaled_dot_product_attention_math(
            *qkv, bias, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
        )[0]
    return out.squeeze(0) if query.ndim == 3 else out


def takes_flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    is_causal: bool,
    enable_gqa: bool,
) -> bool:
    """Whether the flash kernel can do it."""
    width = query.shape[-1]
    return (
        torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]
        and mask is None
        and query.dtype in HALF
        and _are_alike(query, key, value, enable_gqa=enable_gqa)
        and key.shape[-1] == value.shape[-1] == width <= WIDEST_FLASH_HEAD
        and not (is_causal and query.shape[-2] != key.shape[-2])
    )


def takes_efficient(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, enable_gqa: bool) -> bool:
    """Whether the memory-efficient kernel can do it."""
    widths = query.shape[-1], value.shape[-1]
    return (
        torch.backends.cuda.mem_efficient_sdp_enabled()  # type: ignore[no-untyped-call]
        and query.dtype in (*HALF, torch.float32)
        and _are_alike(query, key, value, enable_gqa=enable_gqa)
        and all(width * query.element_size() % EFFICIENT_ALIGNMENT_BYTES == 0 for width in widths)
    )


def _are_alike(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, enable_gqa: bool) -> bool:
    """What both fused kernels ask for: one dtype, the same heads (or groups of them), heads without gaps."""
    num_heads = {tensor.shape[1] for tensor in (query, key, value)}
    return (
        query.ndim == 4
        and query.dtype == key.dtype == value.dtype
        and query.shape[0] == key.shape[0] == value.shape[0]
        and (enable_gqa or len(num_heads) == 1)
        and all(tensor.stride(-1) == 1 for tensor in (query, key, value))
    )


def flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, is_causal: bool, scale: float | None
) -> torch.Tensor:
    """Heads are padded to a multiple of 8, one copy each."""
    width = query.shape[-1]
    missing = -width % FLASH_ALIGNMENT
    if missing:
        query, key, value = (functional.pad(tensor, (0, missing)) for tensor in (query, key, value))
    out: torch.Tensor = aten._scaled_dot_product_flash_attention.default(
        query, key, value, 0.0, is_causal, False, scale=scale
    )[0]
    del value, key, query  # as C++ lets go of copies: the last one first
    return out[..., :width] if missing else out


def efficient(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    is_causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """A mask's rows are padded to a multiple of 8; wide heads in 16 bits are added up in a float32 copy of the result."""
    bias = additive(
        mask, query.dtype
    )  # here: nothing else may hold what is padded, or it stays for as long as the kernel
    if bias is not None:
        bias = aligned(bias, (*query.shape[:-1], key.shape[-2]))
    out: torch.Tensor = aten._scaled_dot_product_efficient_attention.default(
        query, key, value, bias, False, 0.0, is_causal, scale=scale
    )[0]
    if value.shape[-1] > WIDEST_WITHOUT_ACCUMULATOR and out.dtype in HALF:
        torch.empty_like(out, dtype=torch.float32)
    return out


def additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """A mask as numbers to add (`convert_boolean_attn_mask`)."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.where(mask, torch.zeros((), dtype=dtype), torch.zeros((), dtype=dtype))


def aligned(bias: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A mask as the memory-efficient kernel takes it (`preprocess_mask`)."""
    length = bias.shape[-1]
    if any(number % MASK_ALIGNMENT for number in (length, *bias.expand(shape).stride()[:-1])):
        bias = functional.pad(bias, (0, MASK_ALIGNMENT - length % MASK_ALIGNMENT))[..., :length]
    return bias.expand(shape)
