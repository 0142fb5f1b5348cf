"""What tests ask of a pipeline of the catalog."""

import torch

from vramtune.contract import Pipeline


def stored(module: torch.nn.Module) -> list[torch.Tensor]:
    """What its weight files hold: parameters and saved buffers, tied ones once."""
    return list({id(tensor): tensor for tensor in module.state_dict(keep_vars=True).values()}.values())


def modules(pipe: Pipeline) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
