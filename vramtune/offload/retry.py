"""The budget held, and out of memory inside a component's call: make room, run that call again."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

SIGNS = (
    "out of memory",
    "ALLOC_FAILED",  # CUBLAS_STATUS_, CUDNN_STATUS_, CUFFT_
    "CUBLAS_STATUS_NOT_INITIALIZED",  # of `cublasCreate`, whose memory is not PyTorch's
)
"""In the messages of libraries that raise a plain RuntimeError."""
NO_ENGINE = "unable to find an engine to execute this computation"
"""A convolution's message where every engine of cuDNN lacked memory for its workspace, or none is for this dtype."""


@contextmanager
def limited(device: torch.device, num_bytes: int) -> Iterator[None]:
    """Let PyTorch's allocator have no more than so many bytes of a device, or than it may have already.

    At that limit it frees what it only caches, then it is out of memory: so what no plan foresees (a larger call,
    workspaces) takes the room of weights, not more than the budget. Nothing is limited where the device has no
    such limit.
    """
    module = torch.get_device_module(device)
    if not hasattr(module, "get_per_process_memory_fraction"):
        yield
        return
    before = module.get_per_process_memory_fraction(device)
    _, total_bytes = torch.accelerator.get_memory_info(device)
    module.set_per_process_memory_fraction(min(before, max(num_bytes, 0) / total_bytes), device)
    try:
        yield
    finally:
        module.set_per_process_memory_fraction(before, device)


def with_room(call: Callable[[], Any], make_room: Callable[[], bool], *, device: torch.device) -> Any:
    """What `call` returns; where it runs out of device memory, as often as `make_room` can make some, again.

    The call must not have changed what it works on. When there is no more room to make, the last error is raised.
    """
    while True:
        try:
            return call()
        except RuntimeError as error:
            lacks_engine = NO_ENGINE in str(error) and _has_refused(device)
            if not lacks_engine and not is_out_of_memory(error):
                raise
            # The frames of the failed call hold its activations; they must be gone before it is tried again.
            traceback.clear_frames(error.__traceback__)
            failure = error.with_traceback(None)
        if not make_room():
            failure.add_note(
                "vramtune: fewer weights cannot be kept than are now; only a larger budget helps."
            )
            raise failure


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that device memory did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)


def _has_refused(device: torch.device) -> bool:
    """Whether PyTorch's allocator ever refused memory, also where a library went on without."""
    return bool(torch.accelerator.memory_stats(device).get("num_ooms", 0))


def remember_draws(device: torch.device, inputs: Any) -> Callable[[], None]:
    """Note where random numbers are drawn from next; what is returned goes back there.

    By the generators in `inputs` and the default ones of the CPU and the device: some components (LTX's decoder)
    draw noise, and one that is run again must draw the same.
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
