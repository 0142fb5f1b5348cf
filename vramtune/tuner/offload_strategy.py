"""Which whole components leave the GPU when another one comes: for the `ComponentsManager` of diffusers.

Its own `AutoOffloadStrategy` (`diffusers/modular_pipelines/components_manager.py`) knows the weights' bytes and a margin
that the user guesses; this one knows from profiles what each component's calls take besides, and when it is called next.
"""

from collections.abc import Collection, Sequence
from typing import Any

from vramtune.errors import BudgetError, UsageError
from vramtune.layout import round_up
from vramtune.schema import Profile, Stage
from vramtune.tuner.budget import MARGIN_FRACTION, Budget
from vramtune.units import budget_bytes, format_bytes


class OffloadStrategy:
    """Keep on the GPU what is needed soonest, within a VRAM budget: by profiles of the pipelines that will run.

    It is asked only when a component comes, not when one runs that is there already. So whatever it leaves on the GPU
    may run: all weights there, and the most that a call of any of them takes besides, are within the budget.
    Components that no profile knows share the GPU with none.

    Args:
        profiles: What a call of each pipeline of the manager costs, in the order in which they run; or one of them.
        vram_gb: Budget in GiB for all that the process holds on the GPU.

    Raises:
        UsageError: The budget is not a positive number, or the profiles are none or for different devices.
        BudgetError: A component does not fit even by itself; it carries the smallest budget that would do.

    Example:
        >>> manager.enable_auto_cpu_offload(offload_strategy=vramtune.OffloadStrategy(vramtune.profile(pipe), 8))
    """

    def __init__(self, profiles: Profile | Sequence[Profile], vram_gb: float) -> None:
        known = list(profiles) if isinstance(profiles, Collection) else [profiles]
        _refuse_unfit(known)
        device = known[0].device
        budget = Budget.on(device, budget_bytes(vram_gb), margin_fraction=MARGIN_FRACTION)
        stages = [stage for profile in known for stage in profile.stages]
        self._room_bytes = budget.target_bytes - device.context_bytes - device.workspace_bytes
        """What weights and activations may take together."""
        self._activation_bytes = _activation_bytes(stages)
        self._calls = [name for stage in stages for name in stage.components]
        self._last_call = -1
        """Position among the calls of the component that came last."""
        _refuse_too_small(known, self._activation_bytes, budget, self._room_bytes)

    def __call__(self, hooks: Sequence[Any], model_id: str, model: Any, execution_device: object) -> list[Any]:
        """Choose what leaves.

        Args:
            hooks: What is on the device, as `UserCustomOffloadHook` of diffusers: `model_id` and `model`.
            model_id: Whose turn it is: `ComponentsManager` calls component `unet` "unet_" and a number.
            model: The component itself.
            execution_device: Where to; not looked at.

        Returns:
            Those of the hooks whose components are to be offloaded.
        """
        if _name(model_id) in self._activation_bytes:
            self._last_call = (self._last_call + 1 + self._num_calls_until(_name(model_id))) % len(self._calls)
        kept: list[tuple[str, Any]] = [(_name(model_id), model)]
        leaving = []
        for hook in sorted(hooks, key=lambda hook: self._num_calls_until(_name(hook.model_id))):
            if self._fits([*kept, (_name(hook.model_id), hook.model)]):
                kept.append((_name(hook.model_id), hook.model))
            else:
                leaving.append(hook)
        return leaving

    def _fits(self, components: Sequence[tuple[str, Any]]) -> bool:
        """Whether these may be on the device together while any of them runs."""
        if any(name not in self._activation_bytes for name, _ in components):
            return False
        activations = max(self._activation_bytes[name] for name, _ in components)
        return sum(_weight_bytes(model) for _, model in components) + activations <= self._room_bytes

    def _num_calls_until(self, name: str) -> int:
        """How many calls away the component's next one is; calls go round."""
        following = [*self._calls[self._last_call + 1 :], *self._calls[: self._last_call + 1]]
        return following.index(name) if name in following else len(following)


def _name(model_id: str) -> str:
    """The component's name (`ComponentsManager._id_to_name`)."""
    return model_id.rpartition("_")[0]


def _weight_bytes(model: Any) -> int:
    """What the weights take on the device, as they are now: adapters may have been loaded since the profile."""
    return sum(round_up(tensor.nbytes) for tensor in (*model.parameters(), *model.buffers()))


def _activation_bytes(stages: Sequence[Stage]) -> dict[str, int]:
    """The most that is on the device besides weights while a component runs, by its name."""
    most: dict[str, int] = {}
    for stage in stages:
        for name in stage.components:
            most[name] = max(most.get(name, 0), stage.activation_bytes + stage.pipeline_bytes)
    return most


def _refuse_unfit(profiles: Sequence[Profile]) -> None:
    if not profiles or not all(isinstance(profile, Profile) for profile in profiles):
        raise UsageError(
            "Expected a Profile, or several; `vramtune.profile` makes one, `vramtune.Profile.load` reads one from a file."
        )
    if len({profile.device.name for profile in profiles}) > 1:
        names = ", ".join(profile.device.name for profile in profiles)
        raise UsageError(f"The profiles are for different devices ({names}). Profile all pipelines for one.")


def _refuse_too_small(
    profiles: Sequence[Profile], activation_bytes: dict[str, int], budget: Budget, room_bytes: int
) -> None:
    needed = {
        component.name: component.weights.allocated_bytes + activation_bytes[component.name]
        for profile in profiles
        for component in profile.components
        if component.name in activation_bytes
    }
    largest = max(needed, key=needed.__getitem__)
    if needed[largest] <= room_bytes:
        return
    smallest = budget.limit_for(needed[largest] + budget.target_bytes - room_bytes)
    raise BudgetError(
        f"Whole components do not fit {format_bytes(budget.limit_bytes)}: {largest} alone needs {format_bytes(smallest)}. "
        "Give it at least that, or use vramtune.autotune, which streams what does not fit.",
        budget_bytes=budget.asked_bytes,
        smallest_bytes=smallest,
    )
