"""Where the package's log lines go: INFO and above to standard error, as diffusers' do.

`logging.getLogger("vramtune")` is the switch: `setLevel(logging.WARNING)` silences it, `logging.DEBUG` tells of every
stage, eviction and retry, `handlers` and `propagate` send the lines elsewhere.
"""

import logging
import sys
from typing import TextIO


class StandardError(logging.StreamHandler[TextIO]):
    """Writes to what is `sys.stderr` at that moment: notebooks and tests exchange it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(message)s"))

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Where lines go."""
        return sys.stderr


def show_lines() -> None:
    """Give the package's logger a handler and a level, each unless the user has given it one."""
    logger = logging.getLogger("vramtune")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(StandardError())
        logger.propagate = False
