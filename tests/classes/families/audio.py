"""Sound."""

from typing import Any

import transformers as hf
from diffusers import (
    AceStepPipeline,
    AceStepTransformer1DModel,
    AudioLDM2Pipeline,
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AutoencoderKL,
    AutoencoderOobleck,
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
)
from diffusers.pipelines.ace_step import AceStepConditionEncoder
from diffusers.pipelines.ace_step.modeling_ace_step import AceStepAudioTokenDetokenizer, AceStepAudioTokenizer

from benchmarks.classes import tokenizers
from tests.classes.families.family import family
from tests.classes.families.parts import qwen3, qwen_tokenizer
from tests.tiny_pipelines import t5, t5_tokenizer


def oobleck(latent_channels: int) -> AutoencoderOobleck:
    """An audio VAE of four samples a second."""
    return AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=latent_channels,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )


@family()
def stable_audio() -> StableAudioPipeline:
    """Stable Audio."""
    transformer = StableAudioDiTModel(
        sample_size=4,
        in_channels=3,
        num_layers=2,
        attention_head_dim=4,
        num_key_value_attention_heads=2,
        out_channels=3,
        cross_attention_dim=4,
        time_proj_dim=8,
        global_states_input_dim=8,
        cross_attention_input_dim=4,
    )
    tokenizer = t5_tokenizer()
    tokenizer.model_max_length = 25
    return StableAudioPipeline(
        transformer=transformer,
        scheduler=EDMDPMSolverMultistepScheduler(prediction_type="v_prediction", sigma_data=1.0),
        vae=oobleck(3),
        text_encoder=t5(),
        tokenizer=tokenizer,
        projection_model=StableAudioProjectionModel(text_encoder_dim=32, conditioning_dim=4, min_value=0, max_value=32),
    )


ACE_STEP: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rope_theta": 10000.0,
    "sliding_window": 16,
}


@family(lyrics="[verse] notes", audio_duration=0.4, max_text_length=32)
def ace_step() -> AceStepPipeline:
    """ACE-Step: its condition encoder takes `max().item()` of an order that the pipeline knows."""
    pooled = ACE_STEP | {"audio_acoustic_hidden_dim": 8, "pool_window_size": 2}
    transformer = AceStepTransformer1DModel(
        **ACE_STEP, num_hidden_layers=2, in_channels=24, audio_acoustic_hidden_dim=8, patch_size=2
    )
    condition_encoder = AceStepConditionEncoder(
        **ACE_STEP,
        text_hidden_dim=32,
        timbre_hidden_dim=8,
        num_lyric_encoder_hidden_layers=2,
        num_timbre_encoder_hidden_layers=2,
    )
    return AceStepPipeline(
        transformer=transformer,
        condition_encoder=condition_encoder,
        vae=oobleck(8),
        text_encoder=qwen3(hidden_size=32),
        tokenizer=qwen_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
        audio_tokenizer=AceStepAudioTokenizer(
            **pooled,
            fsq_dim=32,
            fsq_input_levels=[4, 4, 4],
            fsq_input_num_quantizers=1,
            num_attention_pooler_hidden_layers=1,
        ),
        audio_token_detokenizer=AceStepAudioTokenDetokenizer(**pooled, num_attention_pooler_hidden_layers=1),
    )


@family()
def audioldm2() -> AudioLDM2Pipeline:
    """AudioLDM 2, with an `enable_model_cpu_offload` of its own."""
    unet = AudioLDM2UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=(8, 16),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        in_channels=1,
        out_channels=1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
    )
    gpt2 = hf.GPT2Config(n_embd=16, n_head=1, n_layer=1, vocab_size=1000, n_ctx=99, n_positions=99)
    language_model = hf.GPT2LMHeadModel(gpt2)
    language_model.config.max_new_tokens = 8
    tokenizer_2 = t5_tokenizer()
    tokenizer_2.model_max_length = 77
    return AudioLDM2Pipeline(
        unet=unet,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False),
        vae=vae,
        text_encoder=hf.ClapModel(clap_config()),
        text_encoder_2=t5(),
        tokenizer=tokenizers.roberta(),
        tokenizer_2=tokenizer_2,
        feature_extractor=hf.ClapFeatureExtractor(hop_length=7900),
        language_model=language_model,
        projection_model=AudioLDM2ProjectionModel(text_encoder_dim=16, text_encoder_1_dim=32, langauge_model_dim=16),
        vocoder=hf.SpeechT5HifiGan(vocoder_config()),
    )


def clap_config() -> hf.ClapConfig:
    text = {
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "hidden_size": 8,
        "intermediate_size": 37,
        "num_attention_heads": 1,
        "num_hidden_layers": 1,
        "vocab_size": 1000,
        "projection_dim": 8,
    }
    sound = {
        "spec_size": 8,
        "window_size": 4,
        "num_mel_bins": 8,
        "intermediate_size": 37,
        "depths": [1, 1],
        "num_attention_heads": [1, 1],
        "num_hidden_layers": 1,
        "hidden_size": 192,
        "projection_dim": 8,
        "patch_size": 2,
        "patch_stride": 2,
        "patch_embed_input_channels": 4,
    }
    return hf.ClapConfig(text_config=text, audio_config=sound, projection_dim=16)


def vocoder_config() -> hf.SpeechT5HifiGanConfig:
    return hf.SpeechT5HifiGanConfig(
        model_in_dim=8,
        sampling_rate=16000,
        upsample_initial_channel=16,
        upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3, 7],
        resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]],
        normalize_before=False,
    )
