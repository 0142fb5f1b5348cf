"""All that vramtune knows of diffusers and accelerate and relies on; each private name with its upstream file.

Read from diffusers 0.42 and accelerate 1.15. When a release changes one of these names, only this folder has to follow:
here what pipelines and components are, in `refusals.py` what something else has a hand on, in `tracing.py` how a call runs
without values.
"""

import sys
from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from accelerate.hooks import CpuOffload
from diffusers import CacheMixin, DiffusionPipeline, ModelMixin, ModularPipeline
from diffusers.hooks.hooks import StateManager
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from transformers import PreTrainedModel

from vramtune.compiled import uncompiled

Pipeline: TypeAlias = DiffusionPipeline | ModularPipeline
"""What is profiled and tuned: something with components and a call. Modular ones have no offload modes of their own."""
METHODS = ("forward", "encode", "decode")
"""The methods of a component that pipelines call."""
CALL = "__call__"
"""The method of a pipeline that is profiled and planned unless another one is named."""
LAYERWISE_CASTING = "layerwise_casting"
"""The name of the hook of a layer that casts its weights: `_LAYERWISE_CASTING_HOOK` in `diffusers/hooks/layerwise_casting.py`."""
INSTALLATION = "_vramtune_installation"
"""Attribute of a tuned pipeline's class: the installation of its plan."""


def modules_of(pipe: Pipeline) -> dict[str, nn.Module]:
    """The pipeline's components that hold weights, by name."""
    return {name: c for name, c in pipe.components.items() if isinstance(c, nn.Module)}


def entries(component: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Where a pipeline may call a component: by one of its methods, or by a child with weights.

    By the name that profiles and plans use: the module, and the method of it. MiniMax-H3 calls `text_encoder.model`
    (`diffusers/modular_pipelines/minimax_h3/encoders.py`).
    """
    methods = {name: (component, name) for name in METHODS if callable(getattr(component, name, None))}
    weighty = (
        (name, child) for name, child in component.named_children() if next(child.parameters(), None) is not None
    )
    return {name: (child, "forward") for name, child in weighty} | methods


def offload_sequence(pipe: Pipeline) -> tuple[str, ...]:
    """Components in the order in which stock offload chains them (`model_cpu_offload_seq`)."""
    return tuple(filter(None, (getattr(pipe, "model_cpu_offload_seq", None) or "").split("->")))


def excluded_components(pipe: Pipeline) -> tuple[str, ...]:
    """Components that the pipeline excludes from offload.

    `_exclude_from_cpu_offload` in `diffusers/pipelines/pipeline_utils.py`.
    """
    return tuple(getattr(pipe, "_exclude_from_cpu_offload", ()))


def stock_offload_device(pipe: Pipeline) -> torch.device | None:
    """The device of `enable_model_cpu_offload`, or None where that is off.

    By accelerate's hooks: `_all_hooks` of `diffusers/pipelines/pipeline_utils.py` is not kept by pipelines with an
    `enable_model_cpu_offload` of their own (`diffusers/pipelines/audioldm2/pipeline_audioldm2.py`).
    """
    if not isinstance(pipe, DiffusionPipeline):
        return None
    has_own = type(pipe).enable_model_cpu_offload is not DiffusionPipeline.enable_model_cpu_offload
    if not has_own and not getattr(pipe, "_all_hooks", None):
        return None
    hooks = map(offload_hook, modules_of(pipe).values())
    devices = (hook.execution_device for hook in hooks if isinstance(hook, CpuOffload))
    return next((torch.device(device) for device in devices), None)


def switched_off_tiling(component: object) -> bool:
    """Whether a component can decode tile by tile and has that switched off.

    `use_tiling` is set by `enable_tiling` in `diffusers/models/autoencoders/vae.py` (`AutoencoderMixin`).
    """
    return getattr(component, "use_tiling", None) is False


def may_be_stored_in_float8(component: nn.Module) -> bool:
    """Whether a component is a denoiser whose layers can cast their weights: a model of diffusers' that pipelines call by its
    `forward`, with plain weights of 16 bits (`enable_layerwise_casting` in `diffusers/models/modeling_utils.py`)."""
    if not isinstance(component, ModelMixin) or hasattr(component, "decode"):
        return False
    is_plain = all(type(w) in (nn.Parameter, FakeTensor) and w.is_floating_point() for w in component.parameters())
    is_cast = any(map(is_cast_by_layers, component.modules()))
    return is_plain and not is_cast and component.dtype in (torch.float16, torch.bfloat16)


def store_in_float8(component: Any) -> None:
    """Have its layers hold their weights in float8, and cast them while they run."""
    component.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=component.dtype)


def store_as_before(layer: Any) -> None:
    """Have a layer cast its weights no more. diffusers refuses to take its hook off, as what float8 lost is gone: whoever
    calls this has it.

    `deinitalize_hook` in `diffusers/hooks/layerwise_casting.py`, `remove_hook` in `diffusers/hooks/hooks.py`, which leaves
    the class's own `forward` on the instance.
    """
    registry, own = layer._diffusers_hook, vars(layer)
    registry.get_hook(LAYERWISE_CASTING).deinitalize_hook = lambda module: module
    registry.remove_hook(LAYERWISE_CASTING, recurse=False)
    if getattr(own.get("forward"), "__func__", None) is type(layer).forward:
        del own["forward"]
    if not registry.hooks:
        del layer._diffusers_hook


def compute_each_step(component: nn.Module) -> None:
    """Switch off what lets a component skip work of a step, as an earlier one's is like it (`enable_cache`).

    `CacheMixin` in `diffusers/models/cache_utils.py`.
    """
    if isinstance(component, CacheMixin) and component.is_cache_enabled:
        component.disable_cache()


def keeps_steps(component: nn.Module) -> bool:
    """Whether a component keeps something of one step of a call for the next ones (`enable_cache`: FirstBlockCache)."""
    return next(_step_caches(component), None) is not None


def forget_steps(component: nn.Module) -> None:
    """Have a component begin with the first step again; the context of the call that is running stays.

    `reset_stateful_hooks`, which diffusers calls as a call of a pipeline ends, would take that too (`StateManager` in
    `diffusers/hooks/hooks.py`).
    """
    for module, hook in _step_caches(component):
        contexts = [(each, each._context) for each in vars(hook).values() if isinstance(each, StateManager)]
        hook.reset_state(module)
        for manager, context in contexts:
            manager.set_context(context)


def _step_caches(component: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
    """Modules with their hooks that know of earlier steps (`_is_stateful` in `diffusers/hooks/hooks.py`)."""
    for module in component.modules():
        yield from ((module, hook) for hook in layer_hooks(module).values() if hook._is_stateful)


def is_encoder(component: nn.Module) -> bool:
    """Whether a component is a model of transformers': text and image encoders, which a prompt or an image goes through."""
    return isinstance(uncompiled(component), PreTrainedModel)


def has_adapters(component: nn.Module) -> bool:
    """Whether PEFT's layers are in a component: LoRA, whose strength is a plain number of the layer.

    `BaseTunerLayer` in `peft/tuners/tuners_utils.py`; nobody has one who has not imported it.
    """
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    return tuners is not None and any(isinstance(module, tuners.BaseTunerLayer) for module in component.modules())


def may_upcast(component: nn.Module) -> bool:
    """Whether a pipeline may cast this component to float32 before it uses it (`force_upcast`: SDXL its VAE)."""
    return bool(getattr(getattr(component, "config", None), "force_upcast", False))


def blocks_by_shell(component: nn.Module) -> dict[str, tuple[str, ...]]:
    """The modules that block-level group offload hooks (shells), each with the blocks in it that move by themselves.

    A shell is the component ("") or a module that it names. Blocks are the elements of direct children that are
    lists; named children are shells themselves, with blocks of their own (`_apply_group_offloading_block_level` in
    `diffusers/hooks/group_offloading.py`, `_group_offload_block_modules` in `diffusers/models/modeling_utils.py`).
    """
    named = frozenset(getattr(component, "_group_offload_block_modules", None) or ())
    return dict(_shells(component, "", named))


def _shells(module: nn.Module, path: str, named: frozenset[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    prefix = f"{path}." if path else ""
    blocks: list[str] = []
    for name, child in module.named_children():
        if name in named:
            yield from _shells(child, prefix + name, named)
        elif isinstance(child, nn.ModuleList | nn.Sequential):
            blocks += [f"{prefix}{name}.{number}" for number in range(len(child))]
    yield path, tuple(blocks)


def installation_of(pipe: object) -> object | None:
    """The installation of a plan on the pipeline, or None."""
    return vars(type(pipe)).get(INSTALLATION)


def computed_names(module: nn.Module) -> list[str]:
    """Attributes of a module that hooks compute from its parameters before each forward, and nobody frees.

    So do `torch.nn.utils.weight_norm` and `spectral_norm`, which audio decoders have; parametrizations do not.
    """
    hooks = (hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm | SpectralNorm))
    return [hook.name for hook in hooks if hook.name in vars(module)]


def is_cast_by_layers(module: nn.Module) -> bool:
    """Whether a module casts its weights when its forward begins and back when it ends (`enable_layerwise_casting`).

    `layerwise_casting` in `diffusers/hooks/layerwise_casting.py`.
    """
    return LAYERWISE_CASTING in layer_hooks(module)


def layer_hooks(module: nn.Module) -> dict[str, Any]:
    """diffusers' hooks on a module, by name (`_diffusers_hook` in `diffusers/hooks/hooks.py`)."""
    registry = vars(uncompiled(module)).get("_diffusers_hook")  # of its own: some wrappers hand on what they lack
    return {} if registry is None else registry.hooks


def offload_hook(module: nn.Module) -> object | None:
    """Accelerate's hook on a module, or None (`_hf_hook` in `accelerate/hooks.py`)."""
    hook: object | None = vars(uncompiled(module)).get("_hf_hook")  # of its own: some wrappers hand on what they lack
    return hook


def is_half_unhooked(module: nn.Module) -> bool:
    """Whether accelerate was interrupted as it put a hook on or took it off (`_old_forward` in `accelerate/hooks.py`)."""
    return "_old_forward" in vars(module) and offload_hook(module) is None


def drop_offload_hook(module: nn.Module) -> None:
    """Take accelerate's hook off a module without running it (`_hf_hook`, `_old_forward` in `accelerate/hooks.py`).

    Without hooks a pipeline executes on the device of its weights.
    """
    own = vars(module)
    if own.pop("_hf_hook", None) is not None and (forward := own.pop("_old_forward", None)) is not None:
        own["forward"] = forward
