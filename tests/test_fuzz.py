"""Over a thousand bad inputs, each the same in every run: an answer, or an error of our own tree. Never a traceback."""

import json
import random
import re

import pytest

import vramtune
from tests.cli.cli_runner import run
from tests.cli.conftest import profiler  # noqa: F401
from tests.reports import examples
from tests.tuner.test_search import small
from vramtune import catalog
from vramtune.catalog.shipped import shipped_trace
from vramtune.errors import VramtuneError
from vramtune.machine.gpus import find_gpu
from vramtune.offload.device import resolve_device
from vramtune.profiler.arguments import arguments_to_trace
from vramtune.reports.cards import card
from vramtune.reports.notebook import as_html, as_text
from vramtune.schema import Plan, Profile, from_json, to_json
from vramtune.units import MIB

pytestmark = pytest.mark.slow

COSTS = small()
PLAN = vramtune.plan(COSTS, 250 * MIB / 2**30)
TRACE = shipped_trace("sd15")
NASTY = "\x1b]0;gone\x07\x1b[2J\x9b31m\u202e$\\frac{$"
UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What no terminal may get; line breaks and tabs it may."""
VALUES = (
    None, True, False, 0, -1, 1, 7, 2**31, 2**53, 2**63, 10**30, -(10**30), 0.0, -0.5, 1e-300, 1e300, "", "x", NASTY,
    "\ud800", "\0", "n" * 300, [], [None], [[]], {}, {"": 0}, {NASTY: NASTY}, [0] * 50,
)  # fmt: skip
ODD = (
    *VALUES,
    float("nan"),
    float("inf"),
    10**400,
    1e308,
    b"x",
    object(),
    lambda: None,
    int,
    (),
    (0,),
    range(3),
    "~x/y",
)


def places(value, here=()):
    """Paths to everything inside a JSON value."""
    if here:
        yield here
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield from places(each, (*here, key))


def changed(envelope, rng):
    """A file of a noun with one to three parts exchanged, taken out or doubled."""
    content = json.loads(envelope)
    for _ in range(rng.randint(1, 3)):
        *path, last = rng.choice([*places(content)])
        parent = content
        for key in path:
            parent = parent[key]
        way = rng.randrange(4)
        if way == 0:
            del parent[last]
        elif way == 1 and isinstance(parent, list):
            parent.append(parent[last])
        elif way == 2 and isinstance(parent[last], int | float):
            parent[last] = rng.choice([-1, 0, 0.5, 2**31, 2**60, 1e300]) * (parent[last] or 1)
        else:
            parent[last] = rng.choice(VALUES)
        if not content:
            break
    return json.dumps(content).encode(errors="surrogatepass")


def damaged(envelope, rng):
    """A file of a noun with bytes lost, exchanged or put in."""
    content = bytearray(envelope)
    at = rng.randrange(len(content))
    way = rng.randrange(4)
    if way == 0:
        del content[at:]
    elif way == 1:
        content[at : at + rng.randint(1, 40)] = rng.randbytes(rng.randint(0, 8))
    elif way == 2:
        content[at:at] = rng.choice([b"[" * 5000, b'{"a":' * 5000, b"\xff\xfe", b"\0", b"9" * 5000, b"1e999,"])
    else:
        del content[at : at + rng.randint(1, 400)]
    return bytes(content)


def files_of(noun, seed):
    rng, envelope = random.Random(seed), to_json(noun)
    return [(changed if rng.random() < 0.8 else damaged)(envelope, rng) for _ in range(PER_SEED)]


PER_SEED = 40
SEEDS = pytest.mark.parametrize("seed", range(6))


def expect_answer_or_our_error(*acts):
    """Whether all of it was answered."""
    try:
        for act in acts:
            act()
    except VramtuneError as error:
        said = str(error)
    else:
        return True
    assert said
    assert not UNFIT.search(said)
    assert len(said) < 3000
    return False


def use_profile(text):
    costs = from_json(Profile, text)
    plan = vramtune.plan(costs, 0.25)
    vramtune.compare(costs, 0.25)
    vramtune.timeline(costs, plan)
    assert not UNFIT.search(as_text(costs) + as_text(plan) + as_html(plan))
    assert from_json(Plan, to_json(plan))


def use_plan(text):
    plan = from_json(Plan, text)
    card(plan)
    assert not UNFIT.search(as_text(plan) + repr(plan))
    vramtune.timeline(COSTS, plan)


@SEEDS
def test_damaged_profiles(seed):
    for text in files_of(COSTS, seed):
        expect_answer_or_our_error(lambda text=text: use_profile(text))


@SEEDS
def test_damaged_plans(seed):
    for text in files_of(PLAN, seed):
        expect_answer_or_our_error(lambda text=text: use_plan(text))


def test_of_files_that_are_changed_most_are_refused_and_some_are_not():
    answered = [expect_answer_or_our_error(lambda t=t: from_json(Plan, t)) for t in files_of(PLAN, 7)]
    assert 0 < sum(answered) < PER_SEED / 2


# ---------------------------------------------------------------------------------------------------
# The command line

WORDS = ("0", "-1", "1e400", "nan", "inf", "1e-320", "9" * 400, "", " ", NASTY, "\0", "n" * 300, "a/b/" * 200, "~nobody/x",
         "/dev/zero", "/dev/full", ".", "..", "--", "-", "'", "µ", "\udcff", "vae_tiling", "4060", "6", "out.json",
         "out.png", "out.html", "/dev/null/out.json", "n" * 300 + ".json", "\0.json", "~nobody/x.json")  # fmt: skip
OPTIONS = ("--vram-gb", "--gpu", "--allow", "--height", "--width", "--frames", "--steps", "--batch", "--prompt", "--plot",
           "--save", "--report", "--trace", "--json", "--help", "--nothing")  # fmt: skip


def arguments(seed, saved):
    rng = random.Random(seed)
    for number in range(20):
        words = [rng.choice(["plan", "compare", "frontier", "profile", "gpus", "models", NASTY])]
        words.append(str(saved) if rng.random() < 0.3 else rng.choice(["sdxl", *WORDS]))
        if rng.random() < 0.7:
            words += ["--vram-gb", "6"]
        if str(saved) not in words and rng.random() < 0.7:
            words += ["--gpu", "4060"]
        for _ in range(rng.randint(0, 3)):
            words += [rng.choice(OPTIONS), rng.choice(WORDS)]
        yield number, words


def check_run(words):
    result = run(*words)
    assert result.exit_code in (0, 1, 2, 3)
    assert "Traceback" not in result.output
    if result.exit_code == 2:
        assert result.stderr
    if NASTY not in words:  # click repeats what was typed
        assert not UNFIT.search(result.stdout)


@SEEDS
def test_arguments_of_the_command_line(seed, profiler, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    saved = tmp_path / "saved.json"
    COSTS.save(saved)
    monkeypatch.setattr(vramtune.catalog, "load", no_building(catalog.load))
    for _, words in arguments(seed, saved):
        if "--plot" not in words and "--report" not in words:  # drawing takes most of the time
            check_run(words)
    assert saved.read_bytes() == to_json(COSTS)


def no_building(load):
    """Names of real pipelines would be built; all other names are refused as always."""
    return lambda model, **ways: examples_pipeline() if model in catalog.names() else load(model, **ways)


def examples_pipeline():
    from tests.cli.conftest import ImagePipeline

    return ImagePipeline()


@SEEDS
def test_damaged_files_on_the_command_line(seed, tmp_path):
    rng = random.Random(seed)
    for number, text in enumerate(files_of(COSTS, seed + 100)[:20]):
        path = tmp_path / f"{number}.json"
        path.write_bytes(text)
        check_run([rng.choice(["plan", "compare"]), path, "--vram-gb", "0.25", *rng.choice([[], ["--json"]])])


# ---------------------------------------------------------------------------------------------------
# The API


class Pipe:
    def __call__(self, prompt=None, height=None, num_inference_steps=50, output_type="pil"):
        raise AssertionError


ACTS = {
    "plan": lambda a, b: vramtune.plan(COSTS, a, allow=b),
    "plan of": lambda a, b: vramtune.plan(a, b),
    "compare": lambda a, b: vramtune.compare(COSTS, a, allow=b),
    "frontier": lambda a, b: vramtune.frontier(a, allow=b),
    "frontier with": lambda a, b: vramtune.frontier(COSTS, allow=[a]),
    "timeline": lambda a, b: vramtune.timeline(a, b),
    "report": lambda a, b: vramtune.report(COSTS, a, b),
    "report measured": lambda a, b: vramtune.report(COSTS, PLAN, "", measured=a),
    "load": lambda a, b: Plan.load(a),
    "save": lambda a, b: PLAN.save(a) if not isinstance(a, str) else Profile.load(a),
    "profile": lambda a, b: vramtune.profile(a, gpu=b),
    "gpu": lambda a, b: find_gpu(a),
    "price": lambda a, b: vramtune.price(a, b),
    "price on": lambda a, b: vramtune.price(TRACE, a),
    "which": lambda a, b: vramtune.which(TRACE, seconds=a, vram_gb=b, gpus="4060"),
    "which on": lambda a, b: vramtune.which(TRACE, allow=a, gpus=b),
    "which quantized": lambda a, b: vramtune.which("nothing", quantize=a, call_kwargs=b),
    "autotune": lambda a, b: vramtune.autotune(None, 8, device=a, gpu_id=b),
    "autotune budget": lambda a, b: vramtune.autotune(None, a),
    "install": lambda a, b: vramtune.install(None, PLAN, device=a, gpu_id=b),
    "install profile": lambda a, b: vramtune.install(None, PLAN, profile=a),
    "device": lambda a, b: resolve_device(a, b),
    "strategy": lambda a, b: vramtune.OffloadStrategy(a, b),
    "strategy budget": lambda a, b: vramtune.OffloadStrategy(COSTS, a),
    "catalog": lambda a, b: catalog.load(a),
    "card": lambda a, b: as_text(a),
}


@pytest.mark.parametrize("name", ACTS)
def test_arguments_of_the_api(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(name)
    for first in ODD:
        second = rng.choice(ODD)
        expect_answer_or_our_error(lambda a=first, b=second: ACTS[name](a, b))


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_arguments_of_the_call(value):
    for kwargs in (
        value,
        {"prompt": value},
        {"height": value},
        {"num_inference_steps": value},
        {value: 1} if _hashable(value) else {},
    ):
        expect_answer_or_our_error(lambda kwargs=kwargs: arguments_to_trace(Pipe(), "__call__", kwargs))
    expect_answer_or_our_error(lambda: arguments_to_trace(Pipe(), value, {}))


def _hashable(value):
    return not isinstance(value, list | dict)


def test_there_are_over_a_thousand():
    num_files = 6 * PER_SEED * 2 + 6 * 20
    assert num_files + 6 * 20 + len(ACTS) * len(ODD) > 1000


def test_the_example_is_whole():
    assert examples.sdxl() == from_json(Profile, to_json(examples.sdxl()))
