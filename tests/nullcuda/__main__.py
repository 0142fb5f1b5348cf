"""`python -m tests.nullcuda COMMAND...`: run a command, and what it starts, on the null card, built first if need be."""

import os
import sys
import tempfile
from pathlib import Path

from tests.nullcuda.build import NullCudaBuildError, stubs


def main() -> None:
    """Become that command, with the stubs loaded before anything else."""
    try:
        libraries = stubs()
    except NullCudaBuildError as error:
        sys.exit(str(error))
    os.environ["OMP_NUM_THREADS"] = "1"  # as in `tests/conftest.py`, and here torch may come before it
    # what the null card shows is not to be remembered among the user's GPUs
    os.environ.setdefault("VRAMTUNE_CACHE", str(Path(tempfile.gettempdir()) / f"vramtune-nullcuda-{os.getpid()}"))
    os.environ["LD_PRELOAD"] = ":".join(map(str, libraries))
    os.execvp(sys.argv[1], sys.argv[1:])


main()
