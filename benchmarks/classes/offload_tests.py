"""diffusers' own tests of CPU offload with a plan in the place of `enable_model_cpu_offload`, and other calls.

The plan is the streamed one: it keeps nothing on the GPU between calls, which those tests ask of a pipeline. A test
that fails so is asked again with diffusers' own offload: where that fails as well, it does not apply.
"""

import contextlib
import inspect
import re
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

import vramtune
from benchmarks.classes.cases import Dummies
from benchmarks.classes.checks import Subject, Untuned, Wrong, call, expect_equal, fresh_gpu, streaming, whole
from benchmarks.classes.outputs import Output, flat, seed_everything
from benchmarks.classes.reason import one_line, reason
from vramtune import Plan
from vramtune.contract import excluded_components

OFFLOAD = "enable_model_cpu_offload"


class DoesNotApply(Exception):
    """The pipeline has no such thing, or diffusers fails at it as well."""


def check_if_stock_offload_runs(subject: Subject, check: Callable[[], None]) -> None:
    """A check of offloading; it does not apply where it fails and diffusers' own model offload does too."""
    try:
        check()
    except Exception as error:
        fresh_gpu()
        pipe = subject.pipe()
        pipe.enable_model_cpu_offload(device="sim")
        try:
            call(subject, pipe)
        except Exception as with_stock:
            raise DoesNotApply(f"diffusers' own offload fails as well: {reason(with_stock)}") from error
        raise


def streamed(pipe: DiffusionPipeline, plan: Plan) -> vramtune.Tuned:
    return vramtune.install(pipe, streaming(plan, excluded_components(pipe)), device="sim")


# ---------------------------------------------------------------------------------------------------
# Their tests


def names_of_theirs(dummies: Dummies) -> list[str]:
    """`TestClass::test_name` of the tests that switch model offload on, in all classes with the case's dummies."""
    module = sys.modules[dummies.case.module]
    make = type(dummies.test).get_dummy_components
    kinds = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and getattr(kind, "get_dummy_components", None) is make
    ]
    names = {
        name: f"{kind.__name__}::{name}"
        for kind in kinds
        for name in dir(kind)
        if name.startswith("test_") and switches_offload_on(getattr(kind, name))
    }
    return list(names.values())


def switches_offload_on(test: object) -> bool:
    function = inspect.unwrap(test) if callable(test) else None
    return isinstance(function, types.FunctionType) and OFFLOAD in function.__code__.co_names


def check_theirs(dummies: Dummies, name: str, plan: Plan) -> None:
    """One of their tests, under the plan."""
    fresh_gpu()
    with offload_is(dummies.pipeline_class, plan):
        found = outcome(dummies, name)
    if found:
        with_stock = outcome(dummies, name)
        raise DoesNotApply(f"diffusers fails as well: {with_stock}") if with_stock else Wrong(found)


@contextlib.contextmanager
def offload_is(pipeline_class: Any, plan: Plan) -> Iterator[None]:
    """Within it, `enable_model_cpu_offload` of the class installs the plan."""

    def enable_model_cpu_offload(pipe: Any, gpu_id: int | None = None, device: object = None) -> None:
        pipe.remove_all_hooks()
        streamed(pipe, plan)

    own = vars(pipeline_class).get(OFFLOAD)
    setattr(pipeline_class, OFFLOAD, enable_model_cpu_offload)
    try:
        yield
    finally:
        if own is None:
            delattr(pipeline_class, OFFLOAD)
        else:
            setattr(pipeline_class, OFFLOAD, own)


class Listener:
    """A pytest plugin that keeps what happened."""

    def __init__(self) -> None:
        self.failure, self.skipped, self.passed = "", "", False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        report = yield
        if report.failed and call.excinfo is not None:
            self.failure = self.failure or reason(call.excinfo.value)
        elif report.skipped and call.excinfo is not None:
            self.skipped = one_line(str(call.excinfo.value))
        self.passed = self.passed or (report.when == "call" and report.passed)
        return report


def outcome(dummies: Dummies, name: str) -> str:
    """Why one of their tests fails, or nothing; `DoesNotApply` where it skips itself."""
    file = inspect.getfile(type(dummies.test))
    listener = Listener()
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "pytest.ini")
        settings.write_text("[pytest]\n")
        options = ["-c", str(settings), f"--basetemp={folder}/tmp", f"--rootdir={Path(file).parents[2]}"]
        options += ["-p", "no:cacheprovider", "-p", "no:terminal"]  # whose end writes a report into the folder
        pytest.main([*options, f"{file}::{name}"], plugins=[listener])
    if listener.skipped:
        raise DoesNotApply(listener.skipped)
    return listener.failure or ("" if listener.passed else "pytest did not run it")


# ---------------------------------------------------------------------------------------------------
# Other calls: each is made of the untuned pipeline, then of the streamed one

OtherCall = Callable[[Subject, Any], Output]


def batch(subject: Subject, pipe: Any) -> Output:
    inputs = subject.inputs("sim")
    prompts = {name: inputs.get(name) for name in ("prompt", "negative_prompt")}
    if not isinstance(prompts["prompt"], str):
        raise DoesNotApply("no prompt")
    texts = {name: [text, "a short one"] for name, text in prompts.items() if isinstance(text, str)}
    return call(subject, pipe, **texts)


def several_per_prompt(subject: Subject, pipe: Any) -> Output:
    names = inspect.signature(type(pipe).__call__).parameters
    name = next((n for n in names if re.fullmatch(r"num_(images|videos|waveforms)_per_prompt", n)), None)
    if name is None:
        raise DoesNotApply("one image per prompt")
    return call(subject, pipe, **{name: 2})


def prompt_alone(subject: Subject, pipe: Any) -> Output:
    """`encode_prompt`, and then a call."""
    if not hasattr(pipe, "encode_prompt"):
        raise DoesNotApply("no encode_prompt")
    parameters = inspect.signature(pipe.encode_prompt).parameters
    usual = {"num_images_per_prompt": 1, "num_videos_per_prompt": 1, "do_classifier_free_guidance": True}
    given = {n: v for n, v in usual.items() if n in parameters and parameters[n].default is inspect.Parameter.empty}
    given |= {name: value for name, value in subject.inputs("sim").items() if name in parameters}
    given |= {"device": torch.device("sim")} if "device" in parameters else {}
    seed_everything()
    with torch.no_grad():
        encoded = flat(pipe.encode_prompt(**given))
    return encoded + call(subject, pipe)


def callback(subject: Subject, pipe: Any) -> Output:
    """A callback that changes the latents after every step."""
    has_callback = "callback_on_step_end" in inspect.signature(type(pipe).__call__).parameters
    names = getattr(pipe, "_callback_tensor_inputs", None)
    if not (has_callback and names):
        raise DoesNotApply("no callback")

    def halve(pipe: Any, step: int, timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: None if tensor is None else tensor * 0.5 for name, tensor in tensors.items()}

    changed = ["latents"] if "latents" in names else names[:1]
    return call(subject, pipe, callback_on_step_end=halve, callback_on_step_end_tensor_inputs=changed)


def tiling(subject: Subject, pipe: Any) -> Output:
    """The VAE tile by tile and slice by slice."""
    vae = getattr(pipe, "vae", None)
    if not hasattr(vae, "enable_tiling"):
        raise DoesNotApply("no tiling")
    vae.enable_tiling()
    getattr(vae, "enable_slicing", lambda: None)()
    return call(subject, pipe)


def half(subject: Subject, pipe: Any) -> Output:
    """The pipeline cast to half precision after it was tuned."""
    pipe.to(torch.float16)
    halved = {
        name: value.half()
        for name, value in subject.inputs("sim").items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    return call(subject, pipe, **halved)


OTHER_CALLS: dict[str, OtherCall] = {
    "batch": batch,
    "several per prompt": several_per_prompt,
    "encode_prompt alone": prompt_alone,
    "callback": callback,
    "VAE tiling": tiling,
    "half precision": half,
}


def check_other_call(subject: Subject, make: OtherCall, plan: Plan) -> None:
    """The streamed pipeline answers a call that nobody planned for as the untuned one does."""
    try:
        expected = make(subject, whole(subject))
    except DoesNotApply:
        raise
    except Exception as error:
        raise DoesNotApply(f"untuned, it fails as well: {reason(error)}") from error
    fresh_gpu()
    pipe = subject.pipe()
    with streamed(pipe, plan):
        expect_equal("the call", make(subject, pipe), expected)


def check_beside_stock_offload(subject: Subject, expected: Untuned, plan: Plan) -> None:
    """Stock offload after `remove()`, a plan over stock offload, and stock offload again after that."""
    fresh_gpu()
    pipe = subject.pipe()
    with streamed(pipe, plan):
        call(subject, pipe)
    pipe.enable_model_cpu_offload(device="sim")
    expect_equal("stock offload after remove()", call(subject, pipe), expected.second)
    with streamed(pipe, plan):
        expect_equal("a plan over stock offload", call(subject, pipe), expected.second)
    expect_equal("stock offload again", call(subject, pipe), expected.second)
