"""Why something failed, in one line that is the same in every run and on every machine."""

import re
import traceback

LONGEST = 240
OURS = ("/torch/", "/vramtune/", "/benchmarks/classes/", "/_pytest/", "/pluggy/")
"""Where a failure ends that another line has caused."""


def reason(error: BaseException) -> str:
    """Kind and message of the error, and the line of a model, a pipeline or a test that it came from."""
    innermost = error
    while innermost.__cause__ is not None:
        innermost = innermost.__cause__
    notes = " ".join(getattr(error, "__notes__", ()))
    where = place(innermost)
    return f"{type(error).__name__}: {one_line(str(error))}{where and f' [{where}]'} {one_line(notes)}".strip()


def place(error: BaseException) -> str:
    """The last line outside PyTorch and vramtune, or else outside PyTorch."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not any(part in frame.filename for part in OURS)]
    others = [frame for frame in frames if "/torch/" not in frame.filename]
    if not (theirs or others):
        return ""
    frame = (theirs or others)[-1]
    return f"{without_folders(frame.filename)}:{frame.lineno} `{frame.line}`"


def one_line(text: str) -> str:
    """Shortened, without line breaks, addresses and folders of this machine."""
    line = re.sub(r"0x[0-9a-f]{6,}", "0x...", " ".join(text.split()))
    line = re.sub(r"(?<![\w.])/(?:[\w.+-]+/)+", "", line)
    return line if len(line) <= LONGEST else line[:LONGEST] + "..."


def without_folders(path: str) -> str:
    return re.sub(r"^.*/(site-packages|lib/python3\.\d+|src|(?=vramtune/|tests/|benchmarks/))/?", "", path)
