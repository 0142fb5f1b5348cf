"""Well-known pipelines at real size, built from their published configurations and without weights.

Arguments that are left out below have the published value as their class default.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel, UMT5EncoderModel

from vramtune.catalog.dtypes import cast
from vramtune.catalog.encoders import (
    clip_big_g,
    clip_l,
    clip_tokenizer,
    t5_tokenizer,
    t5_xxl,
    umt5_xxl,
)

Module = TypeVar("Module", bound=torch.nn.Module)

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def empty(make: Callable[[], Module], *, dtype: torch.dtype) -> Module:
    """The module that `make` builds, in eval mode, its parameters and buffers on the meta device.

    `accelerate.init_empty_weights` would compute buffers, of which SD 3.5 Medium's table of positions (226 million
    numbers) alone takes seconds, and would untie T5's embeddings, which then count twice.
    """
    with torch.device("meta"):
        module = make()
    cast(module, dtype=dtype)
    return module.eval()


def sd15() -> StableDiffusionPipeline:
    """Stable Diffusion 1.5 without its safety checker, whose forward depends on the values of its output."""
    dtype = torch.float16
    return StableDiffusionPipeline(
        vae=empty(
            lambda: _image_vae(latent_channels=4, sample_size=512, scaling_factor=0.18215), dtype=dtype
        ),
        text_encoder=empty(lambda: CLIPTextModel(clip_l()), dtype=dtype),
        tokenizer=clip_tokenizer(),
        unet=empty(lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768), dtype=dtype),
        scheduler=PNDMScheduler(**BETAS, set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> StableDiffusionXLPipeline:
    """Stable Diffusion XL; its VAE overflows in float16, so the pipeline decodes in float32 (`force_upcast`)."""
    dtype = torch.float16
    return StableDiffusionXLPipeline(
        vae=empty(
            lambda: _image_vae(
                latent_channels=4, sample_size=1024, scaling_factor=0.13025, force_upcast=True
            ),
            dtype=dtype,
        ),
        text_encoder=empty(lambda: CLIPTextModel(clip_l()), dtype=dtype),
        text_encoder_2=empty(lambda: CLIPTextModelWithProjection(clip_big_g()), dtype=dtype),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(pad_token="!"),
        unet=empty(_sdxl_unet, dtype=dtype),
        scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )


def _sdxl_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def sd35_medium() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3.5 Medium: 24 layers, the first 13 with a second attention."""
    return _sd3(
        lambda: SD3Transformer2DModel(
            num_layers=24,
            num_attention_heads=24,
            caption_projection_dim=1536,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        )
    )


def sd35_large() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3.5 Large: 38 layers."""
    return _sd3(
        lambda: SD3Transformer2DModel(
            num_layers=38,
            num_attention_heads=38,
            caption_projection_dim=2432,
            pos_embed_max_size=192,
            qk_norm="rms_norm",
        )
    )


def _sd3(transformer: Callable[[], SD3Transformer2DModel]) -> StableDiffusion3Pipeline:
    dtype = torch.bfloat16
    return StableDiffusion3Pipeline(
        transformer=empty(transformer, dtype=dtype),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=empty(
            lambda: _image_vae(
                latent_channels=16,
                sample_size=1024,
                scaling_factor=1.5305,
                shift_factor=0.0609,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
            dtype=dtype,
        ),
        text_encoder=empty(lambda: CLIPTextModelWithProjection(clip_l()), dtype=dtype),
        tokenizer=clip_tokenizer(),
        text_encoder_2=empty(lambda: CLIPTextModelWithProjection(clip_big_g()), dtype=dtype),
        tokenizer_2=clip_tokenizer(pad_token="!"),
        text_encoder_3=empty(lambda: T5EncoderModel(t5_xxl()), dtype=dtype),
        tokenizer_3=t5_tokenizer(),
    )


def flux1_dev() -> FluxPipeline:
    """FLUX.1 [dev]: 19 double and 38 single blocks, guidance distilled."""
    dtype = torch.bfloat16
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
        vae=empty(
            lambda: _image_vae(
                latent_channels=16,
                sample_size=1024,
                scaling_factor=0.3611,
                shift_factor=0.1159,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
            dtype=dtype,
        ),
        text_encoder=empty(lambda: CLIPTextModel(clip_l()), dtype=dtype),
        tokenizer=clip_tokenizer(),
        text_encoder_2=empty(lambda: T5EncoderModel(t5_xxl()), dtype=dtype),
        tokenizer_2=t5_tokenizer(),
        transformer=empty(
            lambda: FluxTransformer2DModel(
                num_layers=19, num_single_layers=38, num_attention_heads=24, guidance_embeds=True
            ),
            dtype=dtype,
        ),
    )


def wan21_14b() -> WanPipeline:
    """Wan 2.1 text to video, 14B; the VAE in float32, as the model card says."""
    dtype = torch.bfloat16
    return WanPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=empty(lambda: UMT5EncoderModel(umt5_xxl()), dtype=dtype),
        vae=empty(lambda: AutoencoderKLWan(base_dim=96, z_dim=16), dtype=torch.float32),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=empty(
            lambda: WanTransformer3DModel(num_attention_heads=40, num_layers=40, ffn_dim=13824), dtype=dtype
        ),
    )


def _image_vae(**config: object) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        **config,
    )


BUILDERS: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd15": sd15,
    "sdxl": sdxl,
    "sd3.5-medium": sd35_medium,
    "sd3.5-large": sd35_large,
    "flux.1-dev": flux1_dev,
    "wan2.1-14b": wan21_14b,
}
