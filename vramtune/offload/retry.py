"""Out of memory inside a component's call: make room, and run that call again."""

import logging
import math
import re
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from vramtune.offload.groups import num_writes
from vramtune.units import GIB, MIB

logger = logging.getLogger(__name__)

OUT_OF_MEMORY_SIGNS = (
    "out of memory",
    "ALLOC_FAILED",  # CUBLAS_STATUS_, CUDNN_STATUS_, CUFFT_
    "CUBLAS_STATUS_NOT_INITIALIZED",  # from `cublasCreate`, which allocates outside PyTorch
)
"""Parts of the messages of libraries that raise a plain RuntimeError."""
NO_ENGINE = "unable to find an engine to execute this computation"
"""A convolution's message where every engine of cuDNN lacked memory for its workspace, or none supports the dtype."""


ASKED = re.compile(r"Tried to allocate ([0-9.]+) (bytes|[KMG]iB)")
"""What PyTorch's allocators say (`format_size` in `c10/util/Exception.h`'s callers), rounded to two digits."""
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": MIB, "GiB": GIB}
MOST_CUTS = 16
"""Times that weights give up more before the next attempt: 2 MiB, doubled so often, is more than all."""
NO_MORE_ROOM = "vramtune: no more weights can be taken off the GPU; only a larger budget or a smaller call helps."
NOT_REPEATABLE = (
    "vramtune: the call was not run again, because its callbacks, inputs that it changed, or caches that its components keep "
    "from step to step would see that; the next call has more room."
)


def with_room(
    call: Callable[[], Any],
    make_room: Callable[[int | None], bool],
    *,
    device: torch.device,
    name: str = "call",
    is_repeatable: Callable[[], bool] = lambda: True,
    go_back: Callable[[], None] = lambda: None,
) -> Any:
    """Return what `call` returns; where device memory runs out, make room and call again.

    `make_room` is told how many bytes were asked for in vain, or None where the error does not say. `go_back` puts back
    what the failed try moved on. `name` stands for the call in the log.

    When `make_room` can make no more, or the call cannot be repeated because it changed what it works on, the last error
    is raised, with a note that says so. One that says that there is no more room is raised at once. One that says that a
    call inside this one cannot be repeated has room made for it already: this call may still begin again as a whole.
    """
    attempt = 1
    while True:
        try:
            return call()
        except RuntimeError as error:
            lacks_engine = NO_ENGINE in str(error) and _has_refused(device)
            notes = getattr(error, "__notes__", ())
            if NO_MORE_ROOM in notes or (not lacks_engine and not is_out_of_memory(error)):
                raise
            # The frames of the failed call hold its activations; they must be gone before it is tried again.
            traceback.clear_frames(error.__traceback__)
            failure = error.with_traceback(None)
        has_room = NOT_REPEATABLE in notes
        if not has_room and not _is_made(make_room, bytes_asked_for(failure)):
            failure.add_note(NO_MORE_ROOM)
            raise failure
        if not is_repeatable():
            if not has_room:
                failure.add_note(NOT_REPEATABLE)
            raise failure
        go_back()
        attempt += 1
        logger.debug("%s ran out of memory: attempt %d with fewer weights", name, attempt)


def _is_made(make_room: Callable[[int | None], bool], num_bytes: int | None) -> bool:
    """Whether room could be made; where what keeps its place lacks memory for that as well, more is given up."""
    for _ in range(MOST_CUTS):
        try:
            return make_room(num_bytes)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)
    return False


PLAIN = ("builtins", "torch", "numpy", "PIL")
"""Packages whose values a call does not change, but for tensors and generators."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that device memory did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or any(s in str(error) for s in OUT_OF_MEMORY_SIGNS)


def bytes_asked_for(error: BaseException) -> int | None:
    """What was asked for in vain, at the least; None where the error does not say."""
    found = ASKED.search(str(error))
    return None if found is None else math.ceil(float(found[1]) * UNITS[found[2]])


def _has_refused(device: torch.device) -> bool:
    """Whether PyTorch's allocator ever refused memory, also where a library went on without."""
    return bool(torch.accelerator.memory_stats(device).get("num_ooms", 0))


def remember_inputs(inputs: Any) -> Callable[[], bool]:
    """Note what a call works on, and return what says whether the call may be run again with it.

    It may where all inputs are plain values, the same ones still, and no tensor among them was written to since. What of
    another object changed, such as the cache of keys and values that a language model is given, nobody can see.
    """
    leaves = _leaves(inputs)
    versions = [(leaf, num_writes(leaf)) for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def is_repeatable() -> bool:
        now = _leaves(inputs)
        return (
            all(map(_is_plain, leaves))
            and list(map(id, now)) == list(map(id, leaves))
            and all(num_writes(tensor) == version for tensor, version in versions)
        )

    return is_repeatable


def _leaves(inputs: Any) -> list[Any]:
    """What is in tuples, lists and dictionaries; an object of another kind is one leaf, also where PyTorch can flatten it."""
    return tree_leaves(inputs, is_leaf=lambda value: not isinstance(value, tuple | list | dict))


def _is_plain(leaf: Any) -> bool:
    package = type(leaf).__module__.partition(".")[0]
    return package in PLAIN and not callable(leaf) and not hasattr(leaf, "__next__")


def remember_draws(device: torch.device, inputs: Any) -> Callable[[], None]:
    """Note where the random number generators are, and return what puts them back there.

    These are the generators in `inputs` and the default ones of the CPU and the device: some components (LTX's
    decoder) draw noise, and one that is run again must draw the same.
    """
    module = torch.get_device_module(device)
    on_cpu, on_device = torch.get_rng_state(), module.get_rng_state(device)
    given = [(leaf, leaf.get_state()) for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Generator)]

    def go_back() -> None:
        torch.set_rng_state(on_cpu)
        module.set_rng_state(on_device, device)
        for generator, state in given:
            generator.set_state(state)

    return go_back
