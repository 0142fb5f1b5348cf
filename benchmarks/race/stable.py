"""Runs of the race on the null card, each in a process that is forked from this one, which has imported all that takes long.

Started there by `python -m benchmarks.race`, with the rivals on its path: reads tasks from standard input, one line of
JSON each, and answers each with a line. The card is made in the fork, with that task's memory and link.
"""

import json
import sys
from unittest import mock

import torch

with mock.patch.object(
    torch.cuda, "is_available", return_value=True
):  # diffusers asks, and no fork could use the answer
    from benchmarks.race.fork import forked
    from benchmarks.race.one import run


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(forked(run, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
