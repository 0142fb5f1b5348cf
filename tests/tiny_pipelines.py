"""Seven tiny diffusers pipelines with random weights and tokenizers made in code: no downloads, no files.

`build(name)` makes one of `CALL`'s pipelines, the same each time; `run(pipe, name)` calls it for two steps.
"""

import string
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

CALL: dict[str, dict[str, Any]] = {
    "sd15": {"height": 32, "width": 32},
    "sdxl": {"height": 32, "width": 32},
    "sd3": {"height": 32, "width": 32},
    "flux": {"height": 32, "width": 32, "max_sequence_length": 48},
    "wan": {"height": 16, "width": 16, "num_frames": 9, "max_sequence_length": 16},
    "wan22": {"height": 16, "width": 16, "num_frames": 9, "max_sequence_length": 16},
    "ltx": {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 16},
}


def build(name: str) -> DiffusionPipeline:
    """The named pipeline; its random weights are the same each time."""
    torch.manual_seed(0)
    pipe = BUILDERS[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: DiffusionPipeline, name: str, **call_kwargs: Any) -> torch.Tensor:
    """One call of two steps with a fixed seed, as a tensor."""
    generator = torch.Generator("cpu").manual_seed(0)
    settings = {"num_inference_steps": 2, "output_type": "pt", "generator": generator, **CALL[name], **call_kwargs}
    return pipe("a photo of a cat", **settings)[0]


def clip_tokenizer() -> CLIPTokenizer:
    """Byte-level alphabet without merges: one token per character."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(letter + "</w>" for letter in alphabet)]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    """Unigrams over letters; ids 0, 1 and 2 are padding, end and unknown, as T5 expects."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    vocab += [(letter, -3.0) for letter in string.ascii_letters + string.digits + ".,!?'-"]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)


def clip_config() -> CLIPTextConfig:
    """Its end token must be the tokenizer's (1), or pooling takes the wrong position."""
    return CLIPTextConfig(
        vocab_size=1000,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def t5(dim: int = 32) -> T5EncoderModel:
    """A T5 encoder, out of train mode: a model built directly would drop out."""
    config = T5Config(
        vocab_size=100, d_model=dim, d_kv=8, d_ff=dim * 2, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return T5EncoderModel(config).eval()


def image_vae(latent_channels: int = 4, **config: Any) -> AutoencoderKL:
    """A two-level image VAE."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latent_channels,
        sample_size=32,
        **config,
    ).eval()


def flow_vae(latent_channels: int) -> AutoencoderKL:
    """The VAE as SD3 and Flux have it: shifted, without quantisation convolutions."""
    return image_vae(
        latent_channels, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5
    )


def unet(**config: Any) -> UNet2DConditionModel:
    """A two-level UNet with cross attention."""
    return UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        norm_num_groups=4,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        **config,
    ).eval()


def sd15() -> StableDiffusionPipeline:
    """Stable Diffusion 1.5."""
    return StableDiffusionPipeline(
        vae=image_vae(),
        text_encoder=CLIPTextModel(clip_config()).eval(),
        tokenizer=clip_tokenizer(),
        unet=unet(cross_attention_dim=32),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> StableDiffusionXLPipeline:
    """Stable Diffusion XL."""
    return StableDiffusionXLPipeline(
        vae=image_vae(),
        text_encoder=CLIPTextModel(clip_config()).eval(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()).eval(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),  # Euler's makes numpy warn
        unet=unet(
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            use_linear_projection=True,
            projection_class_embeddings_input_dim=80,
            transformer_layers_per_block=(1, 2),
        ),
    )


def sd3() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3, with its three text encoders."""
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=96,
    )
    return StableDiffusion3Pipeline(
        vae=flow_vae(4),
        text_encoder=CLIPTextModelWithProjection(clip_config()).eval(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()).eval(),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(64),
        tokenizer_3=t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=transformer.eval(),
    )


def flux(num_layers: int = 2, num_single_layers: int = 2) -> FluxPipeline:
    """FLUX.1."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=num_layers,
        num_single_layers=num_single_layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=t5_tokenizer(),
        vae=flow_vae(1),
        text_encoder=CLIPTextModel(clip_config()).eval(),
        text_encoder_2=t5(),
        transformer=transformer.eval(),
    )


def wan_transformer() -> WanTransformer3DModel:
    """Two blocks of Wan's transformer."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=256,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    ).eval()


def wan(**second: Any) -> WanPipeline:
    """Wan 2.1, or 2.2 with a second transformer."""
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    return WanPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        vae=vae.eval(),
        transformer=wan_transformer(),
        **second,
    )


def wan22() -> WanPipeline:
    """Wan 2.2: one transformer for the noisy steps, another for the rest."""
    return wan(transformer_2=wan_transformer(), boundary_ratio=0.5)


def ltx() -> LTXPipeline:
    """LTX-Video."""
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    )
    vae = AutoencoderKLLTXVideo(
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    return LTXPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=transformer.eval(),
        vae=vae.eval(),
    )


BUILDERS: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd15": sd15,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "wan": wan,
    "wan22": wan22,
    "ltx": ltx,
}


def larger_flux():
    """FLUX.1 with a transformer of 80 MiB: large beside the allocator's 20 MiB segments."""
    torch.manual_seed(0)
    pipe = build("flux")
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=3,
        num_single_layers=8,
        attention_head_dim=64,
        num_attention_heads=5,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(16, 24, 24),
    )
    pipe.register_modules(transformer=transformer.eval())
    return pipe
