"""Out of memory inside a component's call: make room, run that call again."""

import traceback
from collections.abc import Callable
from typing import Any

import torch

SIGNS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""In the messages of libraries that raise a plain RuntimeError."""


def with_room(call: Callable[[], Any], make_room: Callable[[], bool]) -> Any:
    """What `call` returns; where it runs out of device memory, as often as `make_room` can make some, again.

    The call must not have changed what it works on. When there is no more room to make, the last error is raised.
    """
    while True:
        try:
            return call()
        except RuntimeError as error:
            if not is_out_of_memory(error):
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
