"""Every dummy pipeline of a checkout of diffusers, through vramtune and on the simulated GPU.

Of each set of dummies it checks: a prediction leaves it as it was, and its next call is the same as ever; tuned where
everything fits, and with everything but the roots streamed, it gives bit for bit what the untuned pipeline gives, and
is as it was after `remove()`; diffusers' own offload tests pass with a plan in the place of
`enable_model_cpu_offload`. The checkout is only read. A case with a result is not run again: a run that was
interrupted goes on where it was. Once every case has one, docs/classes.md is written.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

EXAMPLES = """examples:
  python -m benchmarks.classes ../diffusers --site ../site --jobs 2
  python -m benchmarks.classes ../diffusers --only 'Flux|ZImage' --again
  python -m benchmarks.classes ../diffusers --only AudioLDM2 --jobs 1 --loud

Some classes need packages that vramtune does not. To have all of them, in a folder for --site:
  pip install --no-deps --target ../site torchvision sentencepiece protobuf ftfy wcwidth beautifulsoup4 soupsieve peft \\
      parameterized torchsde trampoline requests-mock opencv-python-headless
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.classes",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("checkout", type=Path, metavar="CHECKOUT", help="a checkout of diffusers, with its tests")
    made.add_argument("--site", type=Path, metavar="DIR", help="a folder of extra packages")
    made.add_argument("--only", default="", metavar="REGEX", help="pipeline classes, modules or test classes")
    made.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at a time (default 1)")
    made.add_argument("--again", action="store_true", help="forget the results of what is asked for")
    made.add_argument("--limit", type=float, default=300, metavar="S", help="seconds for one case (default 300)")
    made.add_argument(
        "--patience",
        type=float,
        default=3,
        metavar="S",
        help="seconds of processor time for other calls of a case that works (default 3)",
    )
    made.add_argument(
        "--out", type=Path, default=Path("build/classes"), metavar="DIR", help="results (default build/classes)"
    )
    made.add_argument("--loud", action="store_true", help="show what the cases print")
    return made


def main() -> int:
    """Read the command line, then import: what transformers offers depends on the extra packages."""
    arguments = parser().parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DIFFUSERS_TEST_DEVICE": "sim"}
    if arguments.site:
        sys.path.append(str(arguments.site.resolve()))
    from benchmarks.classes.torchvision_here import load_torchvision

    load_torchvision()
    from benchmarks.classes.suite import Settings, run

    settings = Settings(
        checkout=arguments.checkout.resolve(),
        out=arguments.out.resolve(),
        only=arguments.only,
        num_jobs=arguments.jobs,
        limit_seconds=arguments.limit,
        patience_seconds=arguments.patience,
        again=arguments.again,
        loud=arguments.loud,
    )
    options = ["--site", "DIR"] if arguments.site else []
    return run(settings, shlex.join(["python", "-m", "benchmarks.classes", "CHECKOUT", *options]))


if __name__ == "__main__":
    sys.exit(main())
