"""What pipelines of several families are made of."""

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

from vramtune.catalog.empty import empty

Module = TypeVar("Module", bound=torch.nn.Module)


def sd_vae(dtype: torch.dtype, *, sample_size: int, scaling_factor: float, **config: object) -> AutoencoderKL:
    """Of Stable Diffusion 1 and XL: four channels for 8x8 pixels."""
    return _image_vae(dtype, latent_channels=4, sample_size=sample_size, scaling_factor=scaling_factor, **config)


def sd3_vae(dtype: torch.dtype) -> AutoencoderKL:
    """Of Stable Diffusion 3: sixteen channels for 8x8 pixels."""
    return _sixteen_channels(dtype, scaling_factor=1.5305, shift_factor=0.0609)


def flux1_vae(dtype: torch.dtype) -> AutoencoderKL:
    """Of FLUX.1, Z-Image, Chroma and HiDream."""
    return _sixteen_channels(dtype, scaling_factor=0.3611, shift_factor=0.1159)


def _sixteen_channels(dtype: torch.dtype, **factors: float) -> AutoencoderKL:
    return _image_vae(
        dtype, latent_channels=16, sample_size=1024, use_quant_conv=False, use_post_quant_conv=False, **factors
    )


def _image_vae(dtype: torch.dtype, **config: object) -> AutoencoderKL:
    return empty(
        lambda: AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            **config,
        ),
        dtype=dtype,
    )


def flux_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Of FLUX.1 [dev], whose settings FLUX.2 was released with too."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def with_computed_filters(make: Callable[[], Module]) -> Module:
    """A module of sound, whose hundreds of filters are computed, in a part of the time that meta tensors take for them."""
    with torch.device("cpu"), init_empty_weights():
        module = make()
    return module.to("meta")
