"""Which experts a router chooses: only its weights know, so the costliest choice is taken."""

from typing import Any

import torch

LARGEST_NUM_EXPERTS = 512
"""Far above any image model's; a choice among more is one of words, which another costs as much as."""


def costliest_routing(scores: torch.Tensor, k: int, dim: int = -1, *more: Any) -> torch.Tensor | None:
    """The choice of `torch.topk(scores, k, dim)` that costs most: [... tokens k], like the indices that it returns.

    The first expert works on every token, which is the most memory; the others share the rest evenly, so that all
    weights are used. With one expert a token, each of the others has one token. None where this is no router: its
    scores are [... tokens experts].
    """
    num_experts = scores.shape[-1] if scores.dim() > 1 else 0
    if dim not in (-1, scores.dim() - 1) or not 0 < k < num_experts <= LARGEST_NUM_EXPERTS:
        return None
    num_tokens = scores.shape[:-1].numel()
    if k == 1:
        tokens = torch.arange(num_tokens)
        chosen = torch.where(tokens < num_experts, tokens, 0)
    else:
        others = torch.arange(num_tokens * (k - 1)).reshape(num_tokens, k - 1) % (num_experts - 1) + 1
        chosen = torch.cat([torch.zeros(num_tokens, 1, dtype=others.dtype), others], dim=1)
    return chosen.reshape(*scores.shape[:-1], k)
