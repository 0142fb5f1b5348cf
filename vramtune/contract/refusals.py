"""What cannot be profiled, tuned or moved, by what diffusers and accelerate have done to it: refused before anything is changed."""

from collections.abc import Collection

from accelerate.hooks import AlignDevicesHook, CpuOffload, SequentialHook
from diffusers import DiffusionPipeline
from diffusers.modular_pipelines.components_manager import CustomOffloadHook
from torch import nn

from vramtune.compiled import uncompiled
from vramtune.contract import Pipeline, installation_of, layer_hooks, modules_of, offload_hook
from vramtune.errors import UsageError
from vramtune.plain_tensors import plain_tensors, refuse_unknown


def expect_pipeline(pipe: object) -> None:
    """Raise a `UsageError` for anything other than a diffusers pipeline, such as a model's name."""
    if not isinstance(pipe, Pipeline):
        raise UsageError(
            f"Expected a diffusers pipeline; got {type(pipe).__name__}. Load one with "
            "`DiffusionPipeline.from_pretrained` or `ModularPipeline.from_pretrained`; to predict, one without weights will do "
            "(`from vramtune import catalog; catalog.load(...)`)."
        )


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
            hook = offload_hook(module)
            is_offloaded = isinstance(hook, AlignDevicesHook) and hook.offload
            is_whole = hook is None or isinstance(hook, CpuOffload)  # AudioLDM2 moves halves of a component
            if not is_whole and (module is not component or is_offloaded):
                raise _under_layer_hooks(name)
            if any("group_offloading" in name_of_hook for name_of_hook in layer_hooks(module)):
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
