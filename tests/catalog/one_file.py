"""A tiny Stable Diffusion in one file, by the names that weights have in such files."""

import re
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file

from tests import tiny_pipelines

UNET = {
    r"^time_embedding\.linear_1": "time_embed.0",
    r"^time_embedding\.linear_2": "time_embed.2",
    r"^conv_in": "input_blocks.0.0",
    r"^conv_norm_out": "out.0",
    r"^conv_out": "out.2",
    r"^down_blocks\.0\.resnets\.0": "input_blocks.1.0",
    r"^mid_block\.attentions\.0": "middle_block.1",
    r"^mid_block\.resnets\.0": "middle_block.0",
    r"^mid_block\.resnets\.1": "middle_block.2",
    r"^up_blocks\.0\.resnets\.(\d)": r"output_blocks.\1.0",
}
RESNET = {
    r"\.norm1\.": ".in_layers.0.",
    r"\.conv1\.": ".in_layers.2.",
    r"\.norm2\.": ".out_layers.0.",
    r"\.conv2\.": ".out_layers.3.",
    r"\.time_emb_proj\.": ".emb_layers.1.",
    r"\.conv_shortcut\.": ".skip_connection.",
}
VAE = {
    r"(down|up)_blocks\.0\.resnets": r"\1.0.block",
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"mid_block\.attentions\.0": "mid.attn_1",
    r"group_norm": "norm",
    r"to_(q|k|v)\.": r"\1.",
    r"to_out\.0": "proj_out",
    r"conv_norm_out": "norm_out",
}


def build() -> Any:
    """The pipeline, of one level, without attention outside of the middle."""
    pipe = tiny_pipelines.build("sd15")
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        cross_attention_dim=32,
    )
    pipe.register_modules(unet=unet.eval(), vae=AutoencoderKL(block_out_channels=(32,), latent_channels=4).eval())
    return pipe


def write(pipe: Any, file: Path) -> None:
    """Its weights, all in one file."""
    weights = {}
    for name, weight in pipe.unet.state_dict().items():
        renamed = _renamed(name, RESNET) if ".resnets." in name else name
        weights[f"model.diffusion_model.{_renamed(renamed, UNET)}"] = weight
    for name, weight in pipe.vae.state_dict().items():
        weights[f"first_stage_model.{_renamed(name, VAE)}"] = weight
    for name, weight in pipe.text_encoder.state_dict().items():
        weights[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = weight
    save_file(weights, file)


def _renamed(name: str, rules: dict[str, str]) -> str:
    for pattern, replacement in rules.items():
        name = re.sub(pattern, replacement, name)
    return name
