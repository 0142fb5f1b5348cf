"""Values that the pipeline knows decide what a component does; what depends on weights is refused by name."""

import numpy as np
import pytest
import torch
from torch import nn

import vramtune
from tests import tiny_pipelines
from vramtune.errors import TraceError

CALL = tiny_pipelines.CALL["sd15"]
FOLLOWED: list[int] = []
"""Timesteps that were read; at the module's level, as what a function remembers is copied with its pipeline."""


def profiled(ask, **kwargs):
    """Profile a pipeline whose unet asks something of its inputs first; it has a weight of its own for that."""
    pipe = tiny_pipelines.build("sd15")
    unet, original = pipe.unet, pipe.unet.forward
    unet.table = nn.Parameter(torch.ones(64, 64))

    def forward(sample, timestep, encoder_hidden_states, **more):
        sample = ask(unet, sample, timestep, encoder_hidden_states)
        return original(sample, timestep, encoder_hidden_states, **more)

    unet.forward = forward
    return vramtune.profile(
        pipe, call_kwargs=CALL | {"num_inference_steps": 2} | kwargs, gpu="RTX 4060", progress=False
    )


def test_a_timestep_may_be_read_and_each_value_is_followed_apart():
    def ask(self, sample, timestep, _):
        FOLLOWED.append(int(timestep))
        return sample * (2 if FOLLOWED[-1] > 500 else 1)

    FOLLOWED.clear()
    profiled(ask, num_inference_steps=4)
    assert len(set(FOLLOWED)) == 4
    assert min(FOLLOWED) <= 500 < max(FOLLOWED)


def test_calls_that_ask_for_no_values_are_followed_once(monkeypatch):
    traced = []
    from vramtune.profiler import record

    original = record.trace_call
    monkeypatch.setattr(
        record,
        "trace_call",
        lambda target, *args, **kw: traced.append(target.component) or original(target, *args, **kw),
    )
    profiled(lambda self, sample, timestep, _: sample * (timestep > 500), num_inference_steps=4)
    assert traced.count("unet") == 1
    traced.clear()
    profiled(lambda self, sample, timestep, _: sample * int(timestep > 0), num_inference_steps=4)
    assert traced.count("unet") == 1 + 3  # the last timestep's answer differs, but each value is asked for


def test_a_known_mask_chooses_rows_of_unknown_tensors():
    def ask(self, sample, timestep, _):
        mask = torch.arange(64) < timestep.clamp(min=7, max=7)
        assert (self.table[mask]).shape == (7, 64)
        rows = self.table * 1
        rows[mask] = 0
        return sample * torch.masked_select(rows, mask[:, None].expand(64, 64)).sum()

    profiled(ask)


def test_lengths_loops_and_unique_values_of_known_tensors_are_real():
    def ask(self, sample, timestep, _):
        lengths = torch.tensor([3, 1, 2])
        assert lengths.tolist() == [3, 1, 2]
        assert torch.repeat_interleave(torch.arange(3), lengths).tolist() == [0, 0, 0, 1, 2, 2]
        assert len(torch.unique(torch.tensor([1, 1, 2]))) == 2
        assert torch.equal(lengths, torch.tensor([3, 1, 2]))
        filled = torch.zeros(4)
        filled[1:3] = 1
        assert filled.nonzero().shape == (2, 1)
        return sample

    profiled(ask)


def test_known_tensors_may_become_arrays_and_a_tensors_data():
    def ask(self, sample, timestep, _):
        lengths = torch.tensor([3, 1, 2])
        assert lengths.numpy().cumsum().tolist() == [3, 4, 6]
        assert np.asarray(lengths).tolist() == [3, 1, 2]
        assert torch.tensor([lengths.max() + 1, 7]).tolist() == [4, 7]
        FOLLOWED.append(int(timestep.numpy()))
        return sample

    FOLLOWED.clear()
    profiled(ask, num_inference_steps=4)
    assert len(set(FOLLOWED)) == 4


@pytest.mark.parametrize(
    "question", [lambda x: x.numpy(), lambda x: torch.tensor([x.sum(), 1.0])], ids=["as an array", "as a tensor's data"]
)
def test_unknown_tensors_may_become_neither(question):
    def ask(self, sample, timestep, states):
        question(states)
        return sample

    with pytest.raises(TraceError, match=r"unet\.forward: .*test_known_values\.py:\d+"):
        profiled(ask)


@pytest.mark.parametrize("num_chosen", [1, 2, 3])
def test_of_a_routers_choices_the_costliest_is_followed(num_chosen):
    """One expert works on every token, and the others on some: the most memory, and all weights."""

    def ask(self, sample, timestep, _):
        scores = self.table[:, :4].softmax(dim=-1)  # [tokens experts]
        _, chosen = torch.topk(scores, num_chosen, dim=-1)
        tokens = chosen.flatten().bincount(minlength=4).cpu().numpy()
        assert tokens.sum() == 64 * num_chosen
        assert tokens.max() == (64 if num_chosen > 1 else 61)
        assert tokens.min() > 0
        assert all(len(set(row)) == num_chosen for row in chosen.tolist())
        return sample

    profiled(ask)


def test_what_a_choice_of_words_decides_is_refused():
    def ask(self, sample, timestep, _):
        _, word = torch.topk(self.table.flatten()[None], 1)
        return sample * word.item()

    with pytest.raises(TraceError, match=r"unet\.forward: .*test_known_values\.py:\d+"):
        profiled(ask)


def test_a_shape_alone_makes_a_known_tensor_of_an_unknown_one():
    def ask(self, sample, timestep, states):
        assert torch.ones_like(states[:, :, 0], dtype=torch.long).sum().item() == states.shape[0] * states.shape[1]
        return sample

    profiled(ask)


@pytest.mark.parametrize("returns_it", [True, False], ids=["that returns it", "that returns nothing"])
def test_what_an_operation_wrote_an_unknown_value_into_is_unknown(returns_it):
    def ask(self, sample, timestep, states):
        buffer = torch.zeros(states.shape[-1])
        if returns_it:
            buffer[:] = states[0, 0]
        else:
            torch._foreach_copy_([buffer], [states[0, 0]])
        return sample * buffer.sum().item()

    with pytest.raises(TraceError, match=r"unet\.forward: .*test_known_values\.py:\d+"):
        profiled(ask)


def test_outputs_of_components_are_unknown_to_other_components():
    """The text encoder's are zeros while the call is followed: nothing may be decided by that."""

    def ask(self, sample, timestep, states):
        return sample * states.sum().item()

    with pytest.raises(TraceError, match=r"unet\.forward.*prompt_embeds"):
        profiled(ask)


def test_the_refusal_names_component_operation_and_line():
    def ask(self, sample, timestep, states):
        return sample[self.table[:1, 0] > 0]

    with pytest.raises(
        TraceError, match=r"unet\.forward: DynamicOutputShapeException.*test_known_values\.py:\d+.*nonzero"
    ):
        profiled(ask)
