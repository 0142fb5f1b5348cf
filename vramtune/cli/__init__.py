"""The command line, one file a command. Nothing heavy is imported before a command needs it: `--help` answers at once.

Exit codes: 0 fits, 3 does not fit, 2 wrong usage (and where an answer or a file cannot be written), 1 the pipeline's
call could not be followed (of `doctor`: something is missing).
"""

from vramtune.cli.app import app, main

__all__ = ["app", "main"]
