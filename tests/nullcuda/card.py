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
    """What has been counted since `reset()`; the used and the pinned bytes are those of now."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "to_card_bytes",
            "from_card_bytes",
            "pageable_bytes",
            "used_bytes",
            "used_peak_bytes",
            "pinned_bytes",
            "num_launches",
        )
    )


@cache
def _runtime() -> ctypes.CDLL:
    return ctypes.CDLL(RUNTIME)  # it is loaded already: the null card's, not NVIDIA's


def card() -> Card:
    """The card itself."""
    find = _runtime().nullcuda_card
    find.restype = ctypes.POINTER(Card)
    return find().contents  # type: ignore[no-any-return]


def counters() -> Counters:
    """What has been counted by now."""
    found = Counters()
    _runtime().nullcuda_counters(ctypes.byref(found))
    return found


def reset() -> None:
    """Count from zero; the peak from what is used now."""
    _runtime().nullcuda_reset_counters()
