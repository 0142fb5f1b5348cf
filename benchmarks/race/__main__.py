"""The race: vramtune, diffusers' own modes and rivals, unmodified, on PyTorch's real CUDA code on a simulated card.

    make race                                            # everything, with the rivals unpacked first; hours
    .venv-nullcuda/bin/python -m benchmarks.race --pipelines sdxl --caps 60 40 --links pcie4x8
    .venv-nullcuda/bin/python -m benchmarks.race --contestants vramtune --again     # ours once more, after a change
    .venv-nullcuda/bin/python -m benchmarks.race --contestants mmgp flextensor --jobs 2
    .venv-nullcuda/bin/python -m benchmarks.race --write-only                        # the tables, of what is there

Each run has a process of its own, some twenty seconds and 2 GB of host memory. Finished ones are kept in
`build/race/rows.jsonl`: a race that was cut goes on where it was, and what failed at one link for another reason than a
lack of memory is not tried at the next (`rows.foregone`). Writes `benchmarks/results/race_<date>.json` and the
tables of the same name at the end. `python -m benchmarks.race.page` makes docs/race.md of them.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import astuple
from itertools import product

from tqdm import tqdm

from benchmarks.race import rows as race_rows
from benchmarks.race.names import CONTESTANTS, PIPELINES
from benchmarks.race.report import write
from benchmarks.race.rows import CAPS, LINKS, ROOMY_BYTES, ROWS, Base, Key
from benchmarks.race.start import Stable

MOST_SETTINGS = max(len(contestant.knobs) for contestant in CONTESTANTS.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.race", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pipelines", nargs="+", choices=PIPELINES, default=list(PIPELINES), metavar="NAME")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME")
    parser.add_argument("--caps", nargs="+", type=int, choices=CAPS, default=CAPS, metavar="PERCENT")
    parser.add_argument("--links", nargs="+", choices=LINKS, default=list(LINKS), metavar="LINK")
    parser.add_argument(
        "--settings", type=int, default=MOST_SETTINGS, help="how many of a contestant's settings are tried"
    )
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=1, help="processes at a time")
    parser.add_argument("--again", action="store_true", help="run also what is there")
    parser.add_argument("--write-only", action="store_true", help="run nothing")
    options = parser.parse_args()
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    if not options.write_only:
        race(options)
    print(*write(race_rows.read(ROWS).values()), sep="\n")


def race(options: argparse.Namespace) -> None:
    """Run what was asked for and is not there yet."""
    places = [(pipeline, link) for pipeline in options.pipelines for link in options.links]
    roomy = {
        (pipeline, link): Key(pipeline=pipeline, link=link, percent=None, contestant="resident", knob="")
        for pipeline, link in places
    }
    known = race_rows.read(ROWS)
    finish([(key, ROOMY_BYTES, 0) for key in roomy.values() if key not in known], options.jobs)
    known = race_rows.read(ROWS)
    todo = list(entries(options, {place: Base(row=known[key]) for place, key in roomy.items()}))
    settled = {} if options.again else known | race_rows.foregone(known.values(), (key for key, *_ in todo))
    finish([run for run in todo if run[0] not in settled], options.jobs)


def finish(todo: list[tuple[Key, int, int]], num_jobs: int) -> None:
    """Run these, and write a line for each as soon as it has ended."""
    pool = ThreadPoolExecutor(num_jobs)
    with Stable() as stable, ROWS.open("a") as file:
        try:
            runs = as_completed([pool.submit(stable.run, *each) for each in todo])
            for done in tqdm(runs, total=len(todo), unit="run"):
                row = done.result()
                file.write(row.as_json() + "\n")
                file.flush()
                name = " ".join(str(part) for part in astuple(row.key))
                tqdm.write(f"{name}: {row.reason or f'{row.seconds:.4f} s'}")
        finally:
            pool.shutdown(cancel_futures=True)  # whoever interrupts waits for no more than what runs


def entries(options: argparse.Namespace, bases: dict[tuple[str, str], Base]) -> Iterator[tuple[Key, int, int]]:
    """Each run with its cap and what the activations take; everyone's first setting before anyone's second."""
    for number in range(options.settings):
        for ((pipeline, link), base), percent, name in product(bases.items(), options.caps, options.contestants):
            knobs = CONTESTANTS[name].knobs
            if number < len(knobs) and not (name == "resident" and percent < 100):  # which could not be
                key = Key(pipeline=pipeline, link=link, percent=percent, contestant=name, knob=knobs[number])
                yield key, base.cap_bytes(percent), base.activation_bytes


if __name__ == "__main__":
    main()
