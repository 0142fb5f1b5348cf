"""Real values on the null card: what Python asks of PyTorch runs on CUDA, and once more on the CPU, on the same memory.

The card's memory is the host's. So PyTorch's CUDA code runs as it is (it allocates, records events, launches kernels that do
nothing); then its CPU code computes the same function on tensors that alias the arguments, and what it returns is written
where the CUDA code put its result.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

WITHOUT_VALUES = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "record_stream", "is_pinned",
    "pin_memory", "set_", "resize_", "detach", "__set__", "__get__", "data_ptr", "size", "stride", "dim", "numel",
    "element_size", "untyped_storage", "storage_offset", "is_contiguous", "__len__", "__hash__", "requires_grad_",
    "is_floating_point", "is_complex", "as_subclass", "backward", "get_device", "nelement", "_make_subclass",
    "retain_grad", "register_hook", "has_names", "is_shared", "__dir__", "_is_view", "__setstate__",
    "set_default_device", "share_memory_", "_typed_storage",
}  # fmt: skip
"""Functions that neither read nor write elements."""
BY_VALUE = {
    "nonzero", "masked_select", "unique", "unique_consecutive", "repeat_interleave", "argwhere", "bincount", "where",
}  # fmt: skip
"""The shape of what these return depends on values: the CPU's result is moved to the card."""
RANDOM = {
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "normal_",
    "uniform_", "bernoulli", "bernoulli_", "multinomial", "dropout", "exponential_", "random_", "trunc_normal_",
    "log_normal_", "cauchy_",
}  # fmt: skip
"""Functions that draw from the card's own generator where they are given none."""
COMPILED = {"prod"}
"""Those whose kernels PyTorch compiles as they are called, which needs NVIDIA's compiler."""


class Values(TorchFunctionMode):
    """While entered, functions on the card's tensors have values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = Call.of(func, args, kwargs or {})
        if call.name == "__repr__":
            return call.on_cpu()
        if not call.has_values():
            return func(*args, **(kwargs or {}))
        if call.decides_a_shape():
            return tree_map(lambda x: x.to("cuda") if isinstance(x, torch.Tensor) else x, call.on_cpu())
        seed = call.seed()
        result = func(*args, **(kwargs or {}))
        if call.is_answered_by(result):
            return result
        computed = call.on_cpu(seed)
        if not _tensors(result):
            return result if call.changes_arguments else computed
        _write(_tensors(result), _tensors(computed))
        return result


class ValuesOfSmall(Values):
    """Values where they may decide something, and take no time: of tensors with few elements."""

    def __init__(self, most_elements: int) -> None:
        super().__init__()
        self.most_elements = most_elements

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__setitem__" and args[0].is_cuda:
            args = (args[0], _positions(args[1]), args[2])
        may_decide_a_shape = name == "__getitem__" or (name in BY_VALUE and (name != "where" or len(args) == 1))
        is_large = any(isinstance(value, torch.Tensor) and value.numel() > self.most_elements for value in args)
        if is_large and not may_decide_a_shape:
            return func(*args, **(kwargs or {}))
        call = Call.of(func, args, kwargs or {})
        if name in COMPILED:
            return call.on_cpu().to("cuda")
        if all(tensor.numel() <= self.most_elements for tensor in call.tensors) or call.decides_a_shape():
            return super().__torch_function__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, slots=True)
class Call:
    """A function of PyTorch's and what it is called with."""

    func: Callable[..., Any]
    name: str
    leaves: list[Any]
    spec: TreeSpec
    keywords: frozenset[str]

    @classmethod
    def of(cls, func: Any, args: Any, kwargs: dict[str, Any]) -> "Call":
        """A call as PyTorch hands it to a mode."""
        return cls(func, getattr(func, "__name__", ""), *tree_flatten((args, kwargs)), frozenset(kwargs))

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]

    @property
    def changes_arguments(self) -> bool:
        is_in_place = self.name.endswith("_") and not self.name.endswith("__")
        return is_in_place or self.name.startswith(("__i", "__setitem__")) or "out" in self.keywords

    def has_values(self) -> bool:
        """Whether it has to do with elements of the card's tensors."""
        if self.name in WITHOUT_VALUES or _is_tracing() or not all(map(_is_plain, self.tensors)):
            return False
        return any(t.is_cuda for t in self.tensors) or any(_on_cpu(leaf) is not leaf for leaf in self.leaves)

    def decides_a_shape(self) -> bool:
        """Whether the shape of the result depends on values."""
        masks = [t for t in self.tensors[1:] if t.dtype in (torch.bool, torch.uint8)]
        if self.name == "repeat_interleave":
            return len(self.tensors) > 1  # which says how often
        return self.name in BY_VALUE or (self.name == "__getitem__" and bool(masks))

    def is_answered_by(self, result: Any) -> bool:
        """Whether a result of CUDA's needs no values of the CPU's: a view of arguments, a setting, something foreign."""
        made = _tensors(result)
        if not all(map(_is_plain, made)):
            return True
        if not made:
            return not self.tensors
        given = {tensor.untyped_storage()._cdata for tensor in self.tensors}
        return not self.changes_arguments and all(tensor.untyped_storage()._cdata in given for tensor in made)

    def seed(self) -> int | None:
        """Of a function that draws on the card: where its generator is, as one number."""
        given = [leaf for leaf in self.leaves if isinstance(leaf, torch.Generator)]
        if not given and self.name not in RANDOM:
            return None
        torch.cuda.init()
        generator = given[0] if given else torch.cuda.default_generators[0]
        if generator.device.type != "cuda":
            return None
        seed: int = (generator.initial_seed() * 1_000_003 + generator.get_offset()) % (1 << 63)
        return seed

    @torch.no_grad()
    def on_cpu(self, seed: int | None = None) -> Any:
        """The same on the CPU, with tensors that alias the card's; from a seed, where it draws."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        leaves = [
            generator if isinstance(leaf, torch.Generator) and seed is not None else _on_cpu(leaf)
            for leaf in self.leaves
        ]
        args, kwargs = tree_unflatten(leaves, self.spec)
        kwargs.pop("pin_memory", None)
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            return self.func(*args, **kwargs)


def alias(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory of the card as a tensor of the CPU."""
    if tensor.numel() == 0:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    reach = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    memory = (ctypes.c_char * (reach * tensor.element_size())).from_address(tensor.data_ptr())
    return torch.frombuffer(memory, dtype=tensor.dtype, count=reach).as_strided(tensor.shape, tensor.stride())


def _positions(index: Any) -> Any:
    """An index whose masks on the card are positions: how many there are is asked of a kernel that does nothing."""
    if isinstance(index, tuple):
        return tuple(part for each in index for part in _as_tuple(_positions(each)))
    if not isinstance(index, torch.Tensor) or index.dtype != torch.bool or not index.is_cuda:
        return index
    return tuple(each.to("cuda") for each in alias(index).nonzero(as_tuple=True))


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _on_cpu(leaf: Any) -> Any:
    """An argument as the CPU's function takes it: the same object where it has nothing to do with the card."""
    if isinstance(leaf, torch.Tensor):
        return alias(leaf.detach()) if leaf.is_cuda else leaf.detach() if leaf.requires_grad else leaf
    if isinstance(leaf, torch.device):
        return torch.device("cpu") if leaf.type == "cuda" else leaf
    if isinstance(leaf, str):
        return "cpu" if leaf.startswith("cuda") else leaf
    return leaf


def _write(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    for target, source in zip(targets, sources, strict=False):  # attention on CUDA returns more than on the CPU
        if target.shape == source.shape and target.numel():
            there = alias(target.detach()) if target.is_cuda else target.detach()
            if there.data_ptr() != source.data_ptr():
                there.copy_(source.detach())


def _tensors(result: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def _is_plain(tensor: torch.Tensor) -> bool:
    is_here = tensor.device.type in ("cpu", "cuda") and tensor.layout is torch.strided
    return is_here and not isinstance(tensor, FakeTensor)


def _is_tracing() -> bool:
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None
