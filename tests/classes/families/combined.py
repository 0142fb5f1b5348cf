"""Pipelines made of pipelines: what the inner ones keep is reached another way."""

from diffusers import (
    DDIMScheduler,
    DDPMWuerstchenScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    KandinskyV22CombinedPipeline,
    PriorTransformer,
    StableCascadeCombinedPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    VisualClozePipeline,
    VQModel,
)
from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

from tests.classes.families.family import family
from tests.classes.families.parts import clip_image_processor, clip_text, clip_vision, one_block_vae, picture
from tests.tiny_pipelines import clip_tokenizer, t5, t5_tokenizer


@family(height=64, width=64, prior_num_inference_steps=2)
def kandinsky22() -> KandinskyV22CombinedPipeline:
    """Kandinsky 2.2: a prior, then a decoder."""
    prior = PriorTransformer(num_attention_heads=2, attention_head_dim=12, embedding_dim=32, num_layers=1)
    prior.clip_std.data.fill_(1.0)
    unet = UNet2DConditionModel(
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(32, 64),
        layers_per_block=1,
        encoder_hid_dim=32,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=100,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
    )
    movq = VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )
    return KandinskyV22CombinedPipeline(
        unet=unet,
        scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False, steps_offset=1),
        movq=movq,
        prior_prior=prior,
        prior_image_encoder=clip_vision(),
        prior_text_encoder=clip_text(projection=True),
        prior_tokenizer=clip_tokenizer(),
        prior_scheduler=UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=10.0
        ),
        prior_image_processor=clip_image_processor(),
    )


@family(height=128, width=128, prior_num_inference_steps=2)
def stable_cascade() -> StableCascadeCombinedPipeline:
    """Stable Cascade."""
    attended = ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")
    prior = StableCascadeUNet(
        conditioning_dim=64,
        block_out_channels=(64, 64),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        clip_image_in_channels=768,
        switch_level=(False,),
        clip_text_in_channels=32,
        clip_text_pooled_in_channels=32,
    )
    decoder = StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        conditioning_dim=64,
        block_out_channels=(16, 32, 64, 64),
        num_attention_heads=(-1, -1, 1, 2),
        down_num_layers_per_block=(1, 1, 1, 1),
        up_num_layers_per_block=(1, 1, 1, 1),
        down_blocks_repeat_mappers=(1, 1, 1, 1),
        up_blocks_repeat_mappers=(1, 1, 1, 1),
        dropout=(0.1, 0.1, 0.1, 0.1),
        block_types_per_layer=(attended[:2], attended[:2], attended, attended),
        clip_text_pooled_in_channels=32,
    )
    return StableCascadeCombinedPipeline(
        tokenizer=clip_tokenizer(),
        text_encoder=clip_text(projection=True),
        decoder=decoder,
        scheduler=DDPMWuerstchenScheduler(),
        vqgan=PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2),
        prior_prior=prior,
        prior_text_encoder=clip_text(projection=True),
        prior_tokenizer=clip_tokenizer(),
        prior_scheduler=DDPMWuerstchenScheduler(),
    )


def pictures() -> list[list[object]]:
    return [[picture(), picture()], [picture(), None]]


@family(
    prompt=None,
    task_prompt="from [IMAGE1] to [IMAGE2]",
    content_prompt="a lake",
    image=pictures,
    upsampling_height=32,
    upsampling_width=32,
    max_sequence_length=48,
    upsampling_strength=0.9,
)
def visual_cloze() -> VisualClozePipeline:
    """VisualCloze: it makes an upsampling pipeline of its own components."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=12,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=6,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(2, 2, 2),
    )
    return VisualClozePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=one_block_vae(1),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
        resolution=32,
    )
