"""All that vramtune knows of diffusers and accelerate and relies on; each private name with its upstream file.

Read from diffusers 0.42 and accelerate 1.15. When a release changes one of these names, only this file has to follow.
"""

import inspect
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from accelerate.hooks import AlignDevicesHook, CpuOffload, SequentialHook
from diffusers import DiffusionPipeline, ModelMixin, ModularPipeline
from diffusers.modular_pipelines.components_manager import CustomOffloadHook
from diffusers.utils import import_utils
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from transformers import PreTrainedModel
from transformers.utils import import_utils as transformers_utils

from vramtune.compiled import uncompiled
from vramtune.errors import UsageError
from vramtune.plain_tensors import plain_tensors, refuse_unknown

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


def expect_pipeline(pipe: object) -> None:
    """Raise a `UsageError` for anything other than a diffusers pipeline, such as a model's name."""
    if not isinstance(pipe, Pipeline):
        raise UsageError(
            f"Expected a diffusers pipeline; got {type(pipe).__name__}. Load one with "
            "`DiffusionPipeline.from_pretrained` or `ModularPipeline.from_pretrained`; to predict, one without weights will do "
            "(`from vramtune import catalog; catalog.load(...)`)."
        )


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
    hooks = (getattr(component, "_hf_hook", None) for component in modules_of(pipe).values())
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


# ---------------------------------------------------------------------------------------------------
# Refusals


def installation_of(pipe: object) -> object | None:
    """The installation of a plan on the pipeline, or None."""
    return vars(type(pipe)).get(INSTALLATION)


class PlanHook(CpuOffload):  # type: ignore[misc]
    """Accelerate's hook on a component that is under a plan, by whatever pipeline's."""


def refuse_tuned(pipe: Pipeline) -> None:
    """Raise a `UsageError` if a plan is installed on the pipeline, or on another one that shares components with it."""
    if installation_of(pipe) is not None:
        raise UsageError(
            "A plan is already installed on this pipeline. Call remove() on what autotune or install returned, or "
            "pipe.remove_all_hooks()."
        )
    for name, component in modules_of(pipe).items():
        _refuse_planned(name, component)


def _refuse_planned(name: str, component: nn.Module, own: Collection[nn.Module] = ()) -> None:
    modules = map(uncompiled, component.modules())
    if any(isinstance(offload_hook(module), PlanHook) and module not in own for module in modules):
        raise UsageError(
            f"Component {name!r} is under the plan of another pipeline that has it too. Call remove() on what autotune or "
            "install returned for that one first; the plan of one pipeline serves all that share its components."
        )


def refuse_unknown_weights(pipe: Pipeline) -> None:
    """Raise a `UsageError` for a weight that is not known to consist of plain tensors."""
    for name, component in modules_of(pipe).items():
        refuse_unknown(name, component)


def refuse_layer_offload(pipe: Pipeline) -> None:
    """Raise a `UsageError` for components whose layers are moved in and out by something else.

    `_hf_hook` in `accelerate/hooks.py`; `_diffusers_hook` in `diffusers/hooks/hooks.py`, whose entries of group
    offload are called `group_offloading` (`diffusers/hooks/group_offloading.py`).
    """
    for name, component in modules_of(pipe).items():
        for module in component.modules():
            hook = getattr(module, "_hf_hook", None)
            is_offloaded = isinstance(hook, AlignDevicesHook) and hook.offload
            is_whole = hook is None or isinstance(hook, CpuOffload)  # AudioLDM2 moves halves of a component
            if not is_whole and (module is not component or is_offloaded):
                raise _under_layer_hooks(name)
            registry = getattr(module, "_diffusers_hook", None)
            if registry is not None and any("group_offloading" in entry for entry in registry.hooks):
                raise UsageError(
                    f"Component {name!r} is under diffusers' group offloading, which has no off switch. Build the "
                    "pipeline again without it."
                )


def refuse_placed(pipe: Pipeline) -> None:
    """Raise a `UsageError` for a pipeline whose components are placed on devices by something else.

    `_is_pipeline_device_mapped`, `_maybe_raise_error_if_tensor_parallel_active` in
    `diffusers/pipelines/pipeline_utils.py`; `CustomOffloadHook` in `diffusers/modular_pipelines/components_manager.py`.
    """
    if isinstance(pipe, DiffusionPipeline) and pipe._is_pipeline_device_mapped():
        raise UsageError(f"The pipeline has a device map ({pipe.hf_device_map}). Call pipe.reset_device_map() first.")
    refuse_layer_offload(pipe)
    if isinstance(pipe, DiffusionPipeline):
        try:
            pipe._maybe_raise_error_if_tensor_parallel_active()
        except ValueError as error:
            raise UsageError(str(error)) from error
    own = _own_hooks(pipe)
    for name, component in modules_of(pipe).items():
        _refuse_hooks(name, component, own)


def refuse_incoming(name: str, component: nn.Module, known: Collection[nn.Module]) -> None:
    """Raise a `UsageError` for a component that cannot come under a plan; it may have ones in it that are: `known`."""
    _refuse_planned(name, component, set(map(uncompiled, known)))
    _refuse_hooks(name, component, [offload_hook(module) for module in known])
    refuse_unmovable(name, component)


def _own_hooks(pipe: Pipeline) -> list[object] | None:
    """The hooks of the pipeline's own `enable_model_cpu_offload`; None where it keeps no list of them (AudioLDM2)."""
    if isinstance(pipe, DiffusionPipeline):
        if type(pipe).enable_model_cpu_offload is not DiffusionPipeline.enable_model_cpu_offload:
            return None
        return [user_hook.hook for user_hook in getattr(pipe, "_all_hooks", ())]
    return []


def _refuse_hooks(name: str, component: nn.Module, own: list[object] | None) -> None:
    hooks = [offload_hook(module) for module in component.modules()]
    if any(isinstance(hook, AlignDevicesHook | SequentialHook) for hook in hooks):
        raise _under_layer_hooks(name)
    if any(isinstance(hook, CustomOffloadHook) for hook in hooks):
        raise UsageError(
            f"Component {name!r} is offloaded by a ComponentsManager, for other pipelines too. Call the manager's "
            "disable_auto_cpu_offload() first."
        )
    if own is not None and any(isinstance(h, CpuOffload) and not any(h is mine for mine in own) for h in hooks):
        raise UsageError(
            f"Component {name!r} is offloaded by another pipeline that has it too, or by hand. Call that pipeline's "
            "remove_all_hooks() (or accelerate's remove_hook_from_module) first."
        )


def _under_layer_hooks(component: str) -> UsageError:
    return UsageError(
        f"Component {component!r} is under sequential CPU offload (or another accelerate hook on its layers). Call "
        "pipe.remove_all_hooks() first."
    )


def refuse_unmovable(component: str, module: nn.Module) -> None:
    """Raise a `UsageError` for weights that cannot be moved: those of unknown kinds, meta tensors."""
    refuse_unknown(component, module)
    for path, owner in module.named_modules():
        for name, weight in (*owner._parameters.items(), *owner._buffers.items()):
            if weight is not None and any(plain.tensor.is_meta for plain in plain_tensors(weight, owner)):
                full = f"{path}.{name}" if path else name
                raise UsageError(
                    f"Weight {full!r} of component {component!r} is on the meta device: it has no values. Load the weights."
                )


# ---------------------------------------------------------------------------------------------------
# Tracing a call


def pipelines_in(pipe: Pipeline) -> Iterator[Pipeline]:
    """The pipeline and those in it: combined pipelines (Kandinsky, Stable Cascade) call others."""
    yield pipe
    for value in vars(pipe).values():
        if isinstance(value, Pipeline):
            yield from pipelines_in(value)


def call_parameters(pipe: Pipeline, method: str) -> dict[str, inspect.Parameter]:
    """What a method of the pipeline takes, by name.

    A modular pipeline's call takes what its blocks do: each input, and all inputs of a kind as one dictionary (`_blocks`
    in `diffusers/modular_pipelines/modular_pipeline.py`).
    """
    parameters = dict(inspect.signature(getattr(type(pipe), method)).parameters)
    parameters.pop(next(iter(parameters)))  # self
    if method == CALL and isinstance(pipe, ModularPipeline):
        inputs = pipe._blocks.inputs
        names = dict.fromkeys(name for each in inputs for name in (each.name, each.kwargs_type) if name)
        del parameters["kwargs"]
        parameters |= {name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names}
    return parameters


def shared_by_copies(pipe: Pipeline) -> Iterator[object]:
    """What would take long to copy: the compiled half of fast tokenizers, and what knows of other pipelines' weights.

    The first is never changed by a call, the others have no part in it: hooks, and a modular pipeline's manager.
    `_tokenizer` in `transformers/tokenization_utils_tokenizers.py`; processors have a tokenizer in them.
    `_components_manager` in `diffusers/modular_pipelines/modular_pipeline.py`.
    """
    for component in pipe.components.values():
        for owner in (component, getattr(component, "tokenizer", None)):
            if (compiled := getattr(owner, "_tokenizer", None)) is not None:
                yield compiled
    for component in modules_of(pipe).values():
        yield from (module._hf_hook for module in component.modules() if hasattr(module, "_hf_hook"))
    if (manager := getattr(pipe, "_components_manager", None)) is not None:
        yield manager


def missing_package(error: Exception) -> str | None:
    """The optional package for whose want a pipeline failed: diffusers leaves its name undefined where it is not installed.

    `is_<package>_available` in `diffusers/utils/import_utils.py`; `diffusers/pipelines/wan/pipeline_wan_i2v.py` needs ftfy.
    """
    if not isinstance(error, NameError):
        return None
    is_available = getattr(import_utils, f"is_{error.name}_available", None)
    return error.name if is_available is not None and not is_available() else None


def quieten(pipe: Pipeline) -> None:
    """Switch off the progress bar and the stock hooks of a pipeline's copy that is about to be traced.

    Written past `DiffusionPipeline.__setattr__`, which would register the values in the pipeline's config. Without
    entries in `_all_hooks`, `maybe_free_model_hooks` at the end of the call moves nothing. A modular pipeline has its
    bars in its blocks (`_blocks`, `sub_blocks`), and tells its manager of components that are exchanged
    (`_components_manager`, both in `diffusers/modular_pipelines/modular_pipeline.py`).
    """
    own: dict[str, Any] = vars(pipe)
    if isinstance(pipe, ModularPipeline):
        own["_components_manager"] = None
        for block in _blocks_in(pipe._blocks):
            vars(block)["_progress_bar_config"] = {"disable": True}
        return
    own["_progress_bar_config"] = {"disable": True}
    own["_all_hooks"] = []
    own.pop("maybe_free_model_hooks", None)


def _blocks_in(block: Any) -> Iterator[Any]:
    yield block
    for inner in block.sub_blocks.values():
        yield from _blocks_in(inner)


def forward_to_follow(component: nn.Module) -> Callable[..., Any] | None:
    """A `forward` with the same work, where the component's own looks at values that only its weights decide.

    Stable Diffusion's safety checker compares embeddings in NumPy
    (`diffusers/pipelines/stable_diffusion/safety_checker.py`); here it finds nothing, as it mostly does.
    """
    return partial(_checked, component) if type(component).__name__ == "StableDiffusionSafetyChecker" else None


@contextmanager
def masks_by_value(is_known: Callable[[torch.Tensor], bool]) -> Iterator[None]:
    """While entered, transformers looks at the values of masks that are known: of one that hides nothing it makes none.

    It does not where it believes to be traced (`is_fake_tensor` in `transformers/utils/import_utils.py`).
    """
    before = transformers_utils.is_fake_tensor
    transformers_utils.is_fake_tensor = lambda x: isinstance(x, torch.Tensor) and before(x) and not is_known(x)
    try:
        yield
    finally:
        transformers_utils.is_fake_tensor = before


def _checked(checker: Any, clip_input: torch.Tensor, images: Any) -> tuple[Any, list[bool]]:
    embeddings = nn.functional.normalize(checker.visual_projection(checker.vision_model(clip_input)[1]))
    for concepts, thresholds in (
        (checker.special_care_embeds, checker.special_care_embeds_weights),
        (checker.concept_embeds, checker.concept_embeds_weights),
    ):
        torch.mm(embeddings, nn.functional.normalize(concepts).t()).float() - thresholds
    return images, [False] * len(images)


def computed_names(module: nn.Module) -> list[str]:
    """Attributes of a module that hooks compute from its parameters before each forward, and nobody frees.

    So do `torch.nn.utils.weight_norm` and `spectral_norm`, which audio decoders have; parametrizations do not.
    """
    hooks = (hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm | SpectralNorm))
    return [hook.name for hook in hooks if hook.name in vars(module)]


def is_cast_by_layers(module: nn.Module) -> bool:
    """Whether a module casts its weights when its forward begins and back when it ends (`enable_layerwise_casting`).

    `_diffusers_hook` in `diffusers/hooks/hooks.py`, `layerwise_casting` in `diffusers/hooks/layerwise_casting.py`.
    """
    registry = getattr(module, "_diffusers_hook", None)
    return registry is not None and LAYERWISE_CASTING in registry.hooks


def offload_hook(module: nn.Module) -> object | None:
    """Accelerate's hook on a module, or None (`_hf_hook` in `accelerate/hooks.py`)."""
    hook: object | None = getattr(module, "_hf_hook", None)
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
