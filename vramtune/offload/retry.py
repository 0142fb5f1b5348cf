"""Out of memory inside a component's call: make room, and run that call again."""

import logging
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

logger = logging.getLogger(__name__)

OUT_OF_MEMORY_SIGNS = (
    "out of memory",
    "ALLOC_FAILED",  # CUBLAS_STATUS_, CUDNN_STATUS_, CUFFT_
    "CUBLAS_STATUS_NOT_INITIALIZED",  # from `cublasCreate`, which allocates outside PyTorch
)
"""Parts of the messages of libraries that raise a plain RuntimeError."""
NO_ENGINE = "unable to find an engine to execute this computation"
"""A convolution's message where every engine of cuDNN lacked memory for its workspace, or none supports the dtype."""


def with_room(
    call: Callable[[], Any], make_room: Callable[[], bool], *, device: torch.device, name: str = "call"
) -> Any:
    """Return what `call` returns; where device memory runs out, make room and call again.

    The call must not have changed what it works on. When `make_room` can make no more, the last error is raised.
    `name` stands for the call in the log.
    """
    attempt = 1
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
                "vramtune: no more weights can be taken off the GPU; only a larger budget or a smaller call helps."
            )
            raise failure
        attempt += 1
        logger.debug("%s ran out of memory: attempt %d with fewer weights", name, attempt)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that device memory did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or any(s in str(error) for s in OUT_OF_MEMORY_SIGNS)


def _has_refused(device: torch.device) -> bool:
    """Whether PyTorch's allocator ever refused memory, also where a library went on without."""
    return bool(torch.accelerator.memory_stats(device).get("num_ooms", 0))


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
