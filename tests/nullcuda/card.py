"""The null card from inside a process that runs on it: its settings, and what it has counted."""

import ctypes
from functools import cache

from tests.nullcuda.build import RUNTIME


class Card(ctypes.Structure):
    """The settings, as `csrc/card.h` has them; those that are assigned hold from then on."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("total_bytes", ctypes.c_size_t),
        ("context_bytes", ctypes.c_size_t),
        ("others_bytes", ctypes.c_size_t),
        ("pinned_limit_bytes", ctypes.c_size_t),
        ("copy_limit_bytes", ctypes.c_size_t),
    )


class Counters(ctypes.Structure):
    """What has been counted since `reset()`, as `csrc/card.h` has it; the used and the pinned bytes are those of now."""

    _fields_ = (
        *(
            (name, ctypes.c_uint64)
            for name in (
                "to_card_bytes",
                "from_card_bytes",
                "pageable_bytes",
                "on_card_bytes",
                "num_to_card_copies",
                "num_from_card_copies",
                "num_pageable_copies",
                "num_on_card_copies",
                "num_launches",
                "num_host_waits",
                "num_mallocs",
                "num_frees",
                "num_page_locks",
                "used_bytes",
                "used_peak_bytes",
                "pinned_bytes",
                "pinned_peak_bytes",
                "pinned_total_bytes",
            )
        ),
        *(
            (name, ctypes.c_double)
            for name in ("host_wait_seconds", "to_card_seconds", "from_card_seconds", "kernel_seconds")
        ),
    )

    def as_dict(self) -> dict[str, float]:
        """All of them by name."""
        return {name: getattr(self, name) for name, _ in self._fields_}


@cache
def runtime() -> ctypes.CDLL:
    """The null card's runtime, not NVIDIA's: it is loaded already."""
    library = ctypes.CDLL(RUNTIME)
    library.nullcuda_card.restype = ctypes.POINTER(Card)
    library.nullcuda_host_seconds.restype = ctypes.c_double
    library.nullcuda_host_work.argtypes = [ctypes.c_double]
    library.nullcuda_kernels_are_told.argtypes = [ctypes.c_bool]
    library.nullcuda_busy.argtypes = [ctypes.c_void_p, ctypes.c_double]
    library.nullcuda_num_launches.restype = ctypes.c_uint64
    return library


def card() -> Card:
    """The card itself."""
    return runtime().nullcuda_card().contents  # type: ignore[no-any-return]


def counters() -> Counters:
    """What has been counted by now."""
    found = Counters()
    runtime().nullcuda_counters(ctypes.byref(found))
    return found


def reset() -> None:
    """Count from zero; peaks from what there is now."""
    runtime().nullcuda_reset_counters()


def host_seconds() -> float:
    """The clock of this thread of the host."""
    return runtime().nullcuda_host_seconds()  # type: ignore[no-any-return]
