"""One run on the null card, in a process that has no card yet."""

import os
import tempfile
from typing import Any

from benchmarks.race import calls
from benchmarks.race.pipelines import build
from tests.nullcuda import card
from tests.nullcuda.clock import Cost, replace_time
from tests.nullcuda.values import ValuesOfSmall

MOST_ELEMENTS = 4096
"""Functions on no larger tensors have values: masks, positions, lengths."""


class NullCard:
    """What it counts, and its virtual clock."""

    reset = staticmethod(card.reset)
    host_seconds = staticmethod(card.host_seconds)

    @property
    def cap_bytes(self) -> int:
        return int(card.card().total_bytes)

    @property
    def context_bytes(self) -> int:
        return int(card.card().context_bytes)

    def counters(self) -> dict[str, float]:
        return card.counters().as_dict()


def run(task: calls.Task) -> dict[str, Any]:
    """Race; what was found."""
    os.environ.update(task["settings"])
    null_card = NullCard()
    assert null_card.cap_bytes == int(task["settings"]["NULLCUDA_TOTAL_BYTES"])
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        os.environ["VRAMTUNE_CACHE"] = cache  # another card's rates are not this one's
        replace_time()
        with ValuesOfSmall(MOST_ELEMENTS), Cost():
            return calls.outcome(task | {"folder": folder}, null_card, lambda: build(task["pipeline"]))
