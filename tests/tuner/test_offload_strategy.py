"""What leaves the GPU when a component comes: decided from profiles, within a budget. Weights stand for models."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.profiles import GIB, MIB, activity, component, device, profile, stage
from vramtune.errors import BudgetError, UsageError
from vramtune.tuner.offload_strategy import OffloadStrategy

ENCODER, DENOISER, VAE = component("encoder", [4 * MIB]), component("denoiser", [10 * MIB]), component("vae", [MIB])
SIZES = {"encoder": 4, "denoiser": 10, "vae": 1}
PROFILE = profile(
    device(),
    [ENCODER, DENOISER, VAE],
    [
        stage("encoder", 1, activity(ENCODER, [0.1], activation_bytes=MIB)),
        stage("denoiser", 9, activity(DENOISER, [0.1], activation_bytes=2 * MIB)),
        stage("vae.decode", 1, activity(VAE, [0.1], method="decode", activation_bytes=6 * MIB)),
    ],
)


def model(mib: int) -> torch.nn.Module:
    return torch.nn.Linear(MIB // 4, mib, bias=False, device="meta")


def hooks(*names: str, **sizes: int) -> list[SimpleNamespace]:
    """As `ComponentsManager` makes them: a number behind each name."""
    return [SimpleNamespace(model_id=f"{name}_7", model=model({**SIZES, **sizes}[name])) for name in names]


def leaving(strategy: OffloadStrategy, comes: str, *present: str, **sizes: int) -> set[str]:
    (incoming,) = hooks(comes, **sizes)
    chosen = strategy(hooks(*present, **sizes), incoming.model_id, incoming.model, torch.device("cuda"))
    return {hook.model_id.removesuffix("_7") for hook in chosen}


def strategy(mib: float, *profiles) -> OffloadStrategy:
    """With so much room after the margin."""
    return OffloadStrategy(list(profiles) or PROFILE, mib * MIB / GIB / 0.995)


def test_what_fits_with_the_largest_activations_stays() -> None:
    assert leaving(strategy(10 + 4 + 2.1), "denoiser", "encoder") == set()
    assert leaving(strategy(10 + 4 + 1.9), "denoiser", "encoder") == {"encoder"}


def test_what_is_there_may_run_unasked_so_its_activations_count() -> None:
    """The denoiser beside the decoder: 11 of weights and 6 of activations, whichever of them comes."""
    assert leaving(strategy(16.9), "denoiser", "vae") == {"vae"}
    assert leaving(strategy(17.1), "denoiser", "vae") == set()
    assert leaving(strategy(16.9), "vae", "denoiser") == {"denoiser"}


def test_what_is_called_soonest_stays() -> None:
    """After the denoiser comes the decoder, then the encoder."""
    within = strategy(10 + 4 + 6.1)
    assert leaving(within, "denoiser", "encoder", "vae") == {"encoder"}
    assert leaving(within, "vae", "denoiser", "encoder") == {"denoiser"}


def test_a_component_that_is_called_twice_is_where_the_call_has_come_to() -> None:
    encoder, denoiser, vae = PROFILE.stages
    within = strategy(10 + 4 + 6.1, replace(PROFILE, stages=(vae, denoiser, vae, encoder)))
    assert leaving(within, "vae", "denoiser", "encoder") == {"encoder"}
    assert leaving(within, "denoiser", "encoder") == set()
    assert leaving(within, "vae", "denoiser", "encoder") == {"denoiser"}


def test_several_profiles_are_one_call_after_the_other() -> None:
    encoding, rest = replace(PROFILE, stages=PROFILE.stages[:1]), replace(PROFILE, stages=PROFILE.stages[1:])
    assert leaving(strategy(10 + 4 + 6.1, encoding, rest), "denoiser", "encoder", "vae") == {"encoder"}


def test_weights_are_counted_as_they_are_now() -> None:
    assert leaving(strategy(17.1), "denoiser", "encoder", encoder=6) == {"encoder"}


def test_what_no_profile_knows_shares_the_device_with_none() -> None:
    plenty = strategy(1000)
    assert leaving(plenty, "denoiser", "encoder", "other", other=1) == {"other"}
    assert leaving(plenty, "other", "encoder", "denoiser", other=1) == {"encoder", "denoiser"}


def test_the_context_and_the_workspaces_count() -> None:
    fixed = replace(PROFILE, device=device(context_bytes=MIB, workspace_bytes=MIB))
    assert leaving(strategy(16.1), "denoiser", "encoder") == set()
    assert leaving(strategy(16.1, fixed), "denoiser", "encoder") == {"encoder"}


def test_a_budget_that_a_component_exceeds_by_itself_is_refused_with_what_would_do() -> None:
    with pytest.raises(BudgetError, match=r"denoiser alone needs 12 MiB.*autotune") as raised:
        strategy(11.9)
    OffloadStrategy(PROFILE, raised.value.smallest_bytes / GIB)
    with pytest.raises(BudgetError):
        OffloadStrategy(PROFILE, (raised.value.smallest_bytes - 2) / GIB)


@pytest.mark.parametrize("profiles", [[], "flux", [PROFILE, replace(PROFILE, device=device(name="Other"))]])
def test_what_cannot_be_decided_from_is_refused(profiles) -> None:
    with pytest.raises(UsageError, match=r"a Profile|different devices"):
        OffloadStrategy(profiles, 1)
