"""UNets, and what stands beside them."""

from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKLTemporalDecoder,
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    ControlNetModel,
    DDIMPipeline,
    DDIMScheduler,
    EulerDiscreteScheduler,
    MotionAdapter,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableVideoDiffusionPipeline,
    T2IAdapter,
    UNet2DConditionModel,
    UNet2DModel,
    UNetSpatioTemporalConditionModel,
)

from tests.classes.families.family import family
from tests.classes.families.parts import clip_image_processor, clip_text, clip_vision, picture, pixels
from tests.tiny_pipelines import clip_tokenizer, image_vae, sd15, unet


def pixel_unet(**config: object) -> UNet2DModel:
    return UNet2DModel(
        sample_size=16, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, attention_head_dim=4, **config
    )


@family(num_inference_steps=2)
def ddim() -> DDIMPipeline:
    """A UNet on pixels, and nothing else."""
    made = pixel_unet(
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D")
    )
    return DDIMPipeline(made, DDIMScheduler())


@family(num_inference_steps=None, timesteps=[22, 0])
def consistency() -> ConsistencyModelPipeline:
    """A consistency model."""
    made = pixel_unet(
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
    )
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=40, sigma_min=0.002, sigma_max=80.0)
    return ConsistencyModelPipeline(made, scheduler)


@family(image=pixels, strength=0.9)
def sd15_img2img() -> StableDiffusionImg2ImgPipeline:
    """A call that encodes as well as decodes."""
    return StableDiffusionImg2ImgPipeline(**sd15().components, requires_safety_checker=False)


@family(image=pixels, height=64, width=64)
def controlnet() -> StableDiffusionControlNetPipeline:
    """A second network that runs in each step."""
    made = ControlNetModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        conditioning_embedding_out_channels=(8, 16),
        norm_num_groups=4,
    )
    return StableDiffusionControlNetPipeline(**sd15().components, controlnet=made, requires_safety_checker=False)


@family(image=pixels, height=64, width=64)
def adapter() -> StableDiffusionAdapterPipeline:
    """A second network that runs once."""
    made = T2IAdapter(in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=2)
    parts = sd15().components
    del parts["image_encoder"]
    parts["unet"] = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=32,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=4,
    )
    return StableDiffusionAdapterPipeline(**parts, adapter=made, requires_safety_checker=False)


@family(num_frames=4, height=32, width=32)
def animatediff() -> AnimateDiffPipeline:
    """A UNet that the pipeline makes of another and a motion adapter."""
    motion = MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=4
    )
    return AnimateDiffPipeline(
        vae=image_vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        unet=unet(cross_attention_dim=32),
        motion_adapter=motion,
        scheduler=DDIMScheduler(clip_sample=False, beta_schedule="linear"),
    )


@family(image=picture, num_frames=2, height=32, width=32)
def stable_video() -> StableVideoDiffusionPipeline:
    """Stable Video Diffusion."""
    spatiotemporal = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=32,
        num_attention_heads=4,
        projection_class_embeddings_input_dim=96,
        addition_time_embed_dim=32,
    )
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4
    )
    return StableVideoDiffusionPipeline(
        unet=spatiotemporal,
        image_encoder=clip_vision(224),  # to which the pipeline resizes
        scheduler=EulerDiscreteScheduler(
            interpolation_type="linear",
            prediction_type="v_prediction",
            sigma_max=700.0,
            sigma_min=0.002,
            timestep_spacing="leading",
            timestep_type="continuous",
            use_karras_sigmas=True,
        ),
        vae=vae,
        feature_extractor=clip_image_processor(),
    )
