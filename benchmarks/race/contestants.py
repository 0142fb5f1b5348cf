"""How each contestant is put on a pipeline: as its own text says, with its own knob where it has one.

Rivals' constants are in gigabytes of large models. Where one must know what activations take, it is told what they took
with all weights on the card: more than its text gives it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.race.names import LESS_LOCKED, LOCKED_SHARE
from benchmarks.race.pipelines import denoiser, models, weight_bytes
from vramtune.units import GIB, MIB

BLOCKS = {
    "transformer": ["transformer_blocks.*", "single_transformer_blocks.*", "blocks.*"],
    "unet": ["class:BasicTransformerBlock", "class:ResnetBlock2D"],
}
"""Names of the denoisers' blocks, as FlexTensor's recipes for diffusers give them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a contestant is given."""

    pipe: Any
    call_kwargs: dict[str, Any]
    cap_bytes: int
    """The card's memory, the context with it."""
    context_bytes: int
    activation_bytes: int
    """What the call took beyond the weights with all of them on the card."""
    knob: str
    """One of the contestant's settings; empty where it has none."""
    folder: Path
    """Empty, and gone after the run."""

    @property
    def room_bytes(self) -> int:
        """What the cap leaves for weights."""
        return max(0, self.cap_bytes - self.context_bytes - self.activation_bytes)

    @property
    def denoiser(self) -> str:
        return denoiser(self.pipe)

    @property
    def others(self) -> dict[str, nn.Module]:
        """All models but the denoiser."""
        return {name: module for name, module in models(self.pipe).items() if name != self.denoiser}

    @property
    def denoiser_room_bytes(self) -> int:
        """What the cap leaves for the denoiser's weights where the other models stay on the card."""
        return max(0, self.room_bytes - sum(map(weight_bytes, self.others.values())))


Installed = Any
"""What must stay alive while the pipeline is called."""


def vramtune(start: Start) -> Installed:
    from vramtune import autotune

    lock_gb = LOCKED_SHARE * sum(map(weight_bytes, models(start.pipe).values())) / GIB
    return autotune(
        start.pipe,
        start.cap_bytes / GIB,
        lock_gb=lock_gb if start.knob == LESS_LOCKED else None,
        call_kwargs=start.call_kwargs,
        device="cuda",
        progress=False,
    )


def resident(start: Start) -> Installed:
    return start.pipe.to("cuda")


def model_offload(start: Start) -> Installed:
    return start.pipe.enable_model_cpu_offload()


def sequential_offload(start: Start) -> Installed:
    return start.pipe.enable_sequential_cpu_offload()


def group_offload(start: Start, **options: Any) -> Installed:
    return start.pipe.enable_group_offload(
        onload_device=torch.device("cuda"), offload_device=torch.device("cpu"), use_stream=True, **options
    )


def group_block(start: Start) -> Installed:
    return group_offload(start, offload_type="block_level", num_blocks_per_group=int(start.knob))


def group_block_recorded(start: Start) -> Installed:
    return group_offload(
        start, offload_type="block_level", num_blocks_per_group=int(start.knob), record_stream=True, non_blocking=True
    )


def group_leaf(start: Start) -> Installed:
    return group_offload(start, offload_type="leaf_level")


def group_leaf_recorded(start: Start) -> Installed:
    return group_offload(start, offload_type="leaf_level", record_stream=True, non_blocking=True)


def diffusers_mm(start: Start) -> Installed:
    """`managed(pipe)`; the knob is its safety factor for activations, "as it comes" leaves its constants alone."""
    from diffusers_mm import ModelManager, managed

    if start.knob == "as it comes":
        return managed(start.pipe)
    manager = ModelManager(
        strategy="auto",
        auto_block_pin_working_set_gb=0.1,
        auto_block_pin_act_safety_factor=float(start.knob),
        auto_block_pin_act_fallback_gb=start.activation_bytes / GIB,
        auto_low_cpu_mem_ram_headroom_gb=1.0,
        auto_block_pin_ram_evict_headroom_gb=0.5,
    )
    return managed(start.pipe, mm=manager, device="cuda")


def mmgp(start: Start) -> Installed:
    """Its profile 1, or 2 with a budget for each model. A model takes about twice its budget, its text says."""
    from mmgp import offload, profile_type

    number, _, share = start.knob.partition(" x ")
    options = {"budgets": {"*": max(32, int(start.room_bytes * float(share) / MIB))}} if share else {}
    return offload.profile(
        start.pipe,
        profile_type(int(number)),
        quantizeTransformer=False,
        extraModelsToQuantize=[],
        verboseLevel=-1,
        **options,
    )


def flextensor(start: Start) -> Installed:
    """The denoiser by its recipe for diffusers; the other models stay on the card, as its text says.

    Its budget is a share of the card's memory: the knob times what the cap leaves; with a second word, its way to profile.
    """
    import flextensor as ft

    for module in start.others.values():
        module.to("cuda")
    share, _, profile_mode = start.knob.partition(", ")
    room_bytes = start.denoiser_room_bytes * float(share)
    fraction = min(1.0, max(0.02, room_bytes / start.cap_bytes))
    options = {"profile_mode": profile_mode} if profile_mode else {}
    config = ft.OffloadConfig(include_patterns=BLOCKS[start.denoiser], max_gpu_mem_fraction=fraction, **options)
    wrapped = ft.offload(getattr(start.pipe, start.denoiser), config=config)
    setattr(start.pipe, start.denoiser, wrapped)
    return wrapped


def dynamic_offloader(start: Start) -> Installed:
    """As it comes, or by its preset for a process that stays, with the share that the cap leaves the denoiser."""
    from diffusers_dynamic_offloader import enable_pipeline_offload

    if start.knob == "as it comes":
        return enable_pipeline_offload(start.pipe)
    room_gib = f"{start.denoiser_room_bytes / GIB:.3f}"
    settings = {"DDO_RESIDENT_MODULE_BUDGET_GB": room_gib, "DDO_MAX_RESIDENT_MODULE_BUDGET_GB": room_gib}
    return enable_pipeline_offload(start.pipe, preset=start.knob, environ=settings)


def aircanvas(start: Start) -> Installed:
    """From a folder, as it must; nothing compressed, and no embeddings kept from call to call, which would leave encoders out.

    Its disk is the host's memory here. Tokenizers have no files.
    """
    from aircanvas import AirPipeline

    tokenizers = {name: part for name, part in start.pipe.components.items() if name.startswith("tokenizer")}
    start.pipe.save_pretrained(start.folder / "pipeline")
    return AirPipeline.from_pretrained(
        str(start.folder / "pipeline"),
        compression=None,
        cache_embeddings=False,
        shard_cache=start.folder / "shards",
        vram_budget=start.cap_bytes,
        **tokenizers,
    )


INSTALLS: dict[str, Callable[[Start], Installed]] = {
    "vramtune": vramtune,
    "resident": resident,
    "model": model_offload,
    "sequential": sequential_offload,
    "group-block": group_block,
    "group-block-recorded": group_block_recorded,
    "group-leaf": group_leaf,
    "group-leaf-recorded": group_leaf_recorded,
    "diffusers-mm": diffusers_mm,
    "mmgp": mmgp,
    "flextensor": flextensor,
    "dynamic-offloader": dynamic_offloader,
    "aircanvas": aircanvas,
}
"""By the names of `names.py`."""
