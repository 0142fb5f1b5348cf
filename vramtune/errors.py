"""Everything vramtune raises on purpose.

VramtuneError
├── UsageError (ValueError)          an argument is wrong; nothing was changed
│   ├── UnknownNameError             no model, GPU or permission has that name; lists the near ones
│   └── FileError                    a plan or profile file that is damaged, foreign or of another version
├── BudgetError                      nothing fits; carries the smallest budget that would
├── TraceError (RuntimeError)        the pipeline's call could not be followed without running it
└── NoAcceleratorError (RuntimeError)  this machine has no GPU to ask

A message says what was asked, what was found and what to do.
"""

import difflib
from collections.abc import Iterable
from typing import Literal

from vramtune.printable import printable

FEW = 8
"""So many names that all of them are listed."""
LONG = 80
"""Characters of a name that a message still shows whole."""


class VramtuneError(Exception):
    """Root of the tree. Messages quote files and other libraries, so what a terminal would obey is spelt in them."""

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class UsageError(VramtuneError, ValueError):
    """An argument is wrong; nothing was changed."""


class UnknownNameError(UsageError):
    """Nothing of the kind asked for has that name; the message lists the near ones, or all of them."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        asked = name if len(name) <= LONG else f"{name[:LONG]}..."
        few = len(self.known) <= FEW
        near = difflib.get_close_matches(asked.lower(), [k.lower() for k in self.known], n=5, cutoff=0.4)
        shown = [k for k in self.known if k.lower() in near and not few] or list(self.known)
        lead = "Did you mean" if near and not few else "Known names"
        super().__init__(f"Unknown {kind} {asked!r}. {lead}: {', '.join(shown)}.")


class FileError(UsageError):
    """A file that cannot be read or written, or is not what it was taken for: damaged, of another kind or version."""


class BudgetError(VramtuneError):
    """No plan fits the budget.

    `resource` says which one: `vram`, the GPU's memory, or `ram`, what weights may take of the host. `smallest_bytes` is the smallest budget for which a plan exists; `permission` names one that would
    lower it (to `permitted_bytes`), or is None.
    """

    def __init__(
        self,
        message: str,
        *,
        budget_bytes: int,
        smallest_bytes: int,
        permission: str | None = None,
        permitted_bytes: int | None = None,
        resource: Literal["vram", "ram"] = "vram",
    ) -> None:
        super().__init__(message)
        self.budget_bytes, self.smallest_bytes = budget_bytes, smallest_bytes
        self.permission, self.permitted_bytes = permission, permitted_bytes
        self.resource = resource


class TraceError(VramtuneError, RuntimeError):
    """The pipeline's call could not be followed on fake tensors; names the component and what stopped it."""


class NoAcceleratorError(VramtuneError, RuntimeError):
    """This machine has no GPU; name one instead."""
