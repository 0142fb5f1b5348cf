"""The results of all cases as a page."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.results_file import environment

Result = dict[str, Any]
MAIN_PHASES = ("predicted", "tuned", "streamed")
VERDICTS = {"works": "works", "fails": "does not work", "diffusers": "diffusers itself does not run it here"}


def page(results: Sequence[Result], failures: dict[str, str], command: str, checkout: str) -> list[str]:
    """The page: a summary line, counts by check, a line a case."""
    return [
        "# Pipeline classes",
        "",
        *environment(command, gpu="simulated GPU"),
        f"- Checkout: diffusers {checkout}",
        "- Each line is a set of dummy pipelines in diffusers' tests. It works where it was predicted and left as it",
        "  was; tuned with everything on the GPU and with everything but the roots streamed, and equal bit for bit to",
        "  the untuned pipeline; as it was after `remove()`; and where diffusers' own offload tests pass with a plan.",
        "- Tokenizers and encoders that the tests take from a hub were made in code.",
        "",
        summary(results, failures),
        "",
        *counts(results),
        "",
        "| pipeline | dummies | works, or why not | checks passed |",
        "| --- | --- | --- | ---: |",
        *(row(result) for result in sorted(results, key=lambda r: tuple(r["case"].values()))),
        *(f"| | {name} | cannot be imported: {escaped(text)} | |" for name, text in failures.items()),
    ]


def summary(results: Sequence[Result], failures: dict[str, str]) -> str:
    counted = Counter(map(verdict, results))
    classes = {result["case"]["pipeline"] for result in results}
    parts = ", ".join(f"{counted[key]} {text}" for key, text in VERDICTS.items())
    more = f" {len(failures)} modules of tests cannot be imported." if failures else ""
    return f"**{len(results)} sets of dummies of {len(classes)} pipeline classes: {parts}.**{more}"


def counts(results: Sequence[Result]) -> list[str]:
    """How often each check passes."""
    names = list(dict.fromkeys(name for result in results for name in result["phases"]))
    order = ("builds", "runs untuned", *MAIN_PHASES)
    names.sort(key=lambda name: (order.index(name) if name in order else len(order), name))
    lines = ["| check | passes | fails | does not apply |", "| --- | ---: | ---: | ---: |"]
    for name in names:
        found = Counter(r["phases"][name]["ok"] for r in results if name in r["phases"])
        lines.append(f"| {name} | {found[True]} | {found[False]} | {found[None]} |")
    return lines


def verdict(result: Result) -> str:
    """A key of `VERDICTS`."""
    phases = result["phases"]
    if any(not phases.get(name, {}).get("ok") for name in ("builds", "runs untuned")):
        return "diffusers"
    return "fails" if any(phase["ok"] is False for phase in phases.values()) else "works"


def row(result: Result) -> str:
    case, phases = result["case"], result["phases"]
    applying = [phase for phase in phases.values() if phase["ok"] is not None]
    passed = f"{sum(phase['ok'] for phase in applying)}/{len(applying)}"
    dummies = f"{case['module'].rpartition('.')[2]}.{case['test']}"
    return f"| {case['pipeline']} | {dummies} | {why(result)} | {passed} |"


def why(result: Result) -> str:
    """The verdict; of what failed, each reason once, behind the names of the phases."""
    phases = result["phases"]
    by_text: dict[str, list[str]] = {}
    for name, phase in phases.items():
        if phase["ok"] is False:
            by_text.setdefault(phase["text"], []).append(name)
    texts = [f"{', '.join(names)}: {escaped(text)}" for text, names in by_text.items()]
    if verdict(result) == "works":
        if phases["streamed"]["ok"] is None:
            return f"works with everything on the GPU; offloaded: {escaped(phases['streamed']['text'])}"
        return "works" if result.get("says_much", True) else "works (its output says little: NaN or constant)"
    return f"**{VERDICTS[verdict(result)]}**: " + "; ".join(texts)


def escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def line(result: Result) -> str:
    """What the terminal shows of a case that does not work."""
    case = result["case"]
    return f"{case['pipeline']} ({case['test']}) {why(result)}"
