"""Functions on the card's tensors return what the CPU's return."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

IMAGES, TOKENS = torch.linspace(-1, 1, 512).reshape(2, 4, 8, 8), torch.linspace(-1, 1, 256).reshape(1, 2, 16, 8)
WEIGHT = torch.linspace(-1, 1, 6 * 4 * 9).reshape(6, 4, 3, 3)
FUNCTIONS: dict[str, Callable[[Callable[[torch.Tensor], torch.Tensor]], torch.Tensor]] = {
    "arithmetic": lambda on: (on(IMAGES) * 2 + on(IMAGES).exp()) @ on(IMAGES),
    "in place": lambda on: on(IMAGES.clone()).mul_(3).add_(on(IMAGES)),
    "assignment": lambda on: _assigned(on(IMAGES.clone())),
    "a view": lambda on: on(IMAGES).transpose(1, 2)[:, 1:, ::2],
    "a mask": lambda on: on(IMAGES)[on(IMAGES) > 0.3],
    "nonzero": lambda on: (on(IMAGES) > 0.3).nonzero(),
    "reductions": lambda on: torch.stack([on(IMAGES).sum(), on(IMAGES).mean(), on(IMAGES).amax(), on(IMAGES).std()]),
    "casts": lambda on: on(IMAGES).half().to(torch.bfloat16).float(),
    "concatenation": lambda on: torch.cat(on(IMAGES).chunk(4, 1)[::-1], 1),
    "convolution": lambda on: functional.conv2d(on(IMAGES), on(WEIGHT), padding=1),
    "transposed convolution": lambda on: functional.conv_transpose2d(on(IMAGES), on(WEIGHT.transpose(0, 1))),
    "linear": lambda on: functional.linear(on(TOKENS), on(TOKENS[0, 0])),
    "attention": lambda on: functional.scaled_dot_product_attention(on(TOKENS), on(TOKENS), on(TOKENS)),
    "norms": lambda on: functional.layer_norm(functional.group_norm(on(IMAGES), 2), (8,)),
    "upsampling": lambda on: functional.interpolate(on(IMAGES), scale_factor=2.0, mode="nearest-exact"),
    "an embedding": lambda on: functional.embedding(on(torch.tensor([[1, 0, 3]])), on(TOKENS[0, 0])),
    "an item": lambda on: torch.tensor(on(IMAGES).sum().item()),
}


def _assigned(tensor: torch.Tensor) -> torch.Tensor:
    tensor[:, 1:3] = 7
    tensor[0] += 1
    return tensor


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_on_the_card_has_the_cpus_bits(name: str) -> None:
    expected, found = FUNCTIONS[name](lambda tensor: tensor), FUNCTIONS[name](lambda tensor: tensor.to("cuda"))
    assert found.is_cuda or name == "an item"
    assert found.shape == expected.shape
    assert torch.equal(found.cpu(), expected)


def test_tensors_made_on_the_card_have_values() -> None:
    assert torch.arange(5, device="cuda").tolist() == [0, 1, 2, 3, 4]
    assert torch.tensor([1.5, 2], device="cuda").tolist() == [1.5, 2]
    assert torch.full((2,), 3, device=torch.device("cuda")).cpu().tolist() == [3, 3]


def test_the_cards_generator_draws_the_same_from_the_same_place_and_goes_on() -> None:
    generator = torch.Generator("cuda").manual_seed(1)
    first, second = (torch.randn(5, device="cuda", generator=generator) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(torch.randn(5, device="cuda", generator=generator.manual_seed(1)), first)
    torch.cuda.manual_seed(2)
    third = torch.rand(5, device="cuda")
    assert not torch.equal(torch.rand(5, device="cuda"), third)
    torch.cuda.manual_seed(2)
    assert torch.equal(torch.rand(5, device="cuda"), third)


def test_the_hosts_generator_is_not_touched() -> None:
    before = torch.get_rng_state()
    torch.randn(5, device="cuda")
    assert torch.equal(torch.get_rng_state(), before)


def test_what_the_cpu_refuses_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="must match"):
        torch.ones(2, device="cuda") + torch.ones(3, device="cuda")
