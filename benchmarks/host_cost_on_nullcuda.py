"""What the host takes for a plan around SDXL's UNet, in PyTorch's real CUDA code without a GPU.

    .venv-nullcuda/bin/python -m tests.nullcuda .venv-nullcuda/bin/python -m benchmarks.host_cost_on_nullcuda

Real size, random weights, a small image: kernels do nothing, and of each streamed group only some bytes are copied, so that
what is timed is Python, PyTorch's dispatcher and the stubs. Writes `benchmarks/results/host_cost_nullcuda_<date>.md`.
"""

import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from benchmarks import on_gpu
from benchmarks.results_file import environment, table, write_result
from vramtune.machine.gpus import find_gpu
from vramtune.offload import stream
from vramtune.offload.conductor import Conductor
from vramtune.offload.install import install
from vramtune.predict import predict_profile
from vramtune.tuner.search import choose_plan
from vramtune.units import GIB

GPU, BUDGET_GIB = "RTX 4060", 5
STEPS, CALLS, OPERATIONS = 4, 3, 2000
COPIED_BYTES = 512


def main() -> None:
    torch.set_num_threads(1)
    pipe = on_gpu.build("sdxl")
    kwargs = on_gpu.call_kwargs("sdxl", STEPS)
    plan = choose_plan(predict_profile(pipe, call_kwargs=kwargs, device=find_gpu(GPU)), BUDGET_GIB * GIB)
    (placement,) = (each for each in plan.placements if each.component == "unet")
    kept = max(placement.kept[stage] for stage, active in enumerate(placement.active) if active)
    num_streamed = len(placement.groups) - kept
    spent: dict[str, list[float]] = {"visits": [], "looking at weights": [], "UNet": []}
    small = kwargs | {"height": 128, "width": 128}

    def call() -> None:
        for _ in range(CALLS):
            pipe(**small, generator=torch.Generator("cpu").manual_seed(0))

    with (
        install(pipe, plan, device="cuda"),
        mock.patch.object(torch.Tensor, "copy_", few_bytes(torch.Tensor.copy_)),
        mock.patch.object(stream.Traffic, "enter", timed(stream.Traffic.enter, spent["visits"])),
        mock.patch.object(Conductor, "enter", of_unet(Conductor.enter, spent["looking at weights"])),
        mock.patch.dict(vars(pipe.unet), forward=timed(vars(pipe.unet)["forward"], spent["UNet"])),
    ):
        call()
    visits_by_call = len(spent["visits"]) // len(spent["UNet"])
    tuned_seconds = min(spent["UNet"])
    visit_seconds = min(
        sum(spent["visits"][start : start + visits_by_call])
        for start in range(0, len(spent["visits"]) - visits_by_call + 1, visits_by_call)
    )
    spent["UNet"].clear()
    pipe.to("cuda")
    pipe.unet.forward = timed(pipe.unet.forward, spent["UNet"])
    call()
    rows = [
        ["the UNet's call, resident", f"{min(spent['UNet']) * 1e3:.1f} ms"],
        [f"the same, {num_streamed} of {len(placement.groups)} groups streamed", f"{tuned_seconds * 1e3:.1f} ms"],
        ["of it, visits of groups", f"{visit_seconds * 1e3:.1f} ms"],
        ["of it, looking at its weights before", f"{min(spent['looking at weights']) * 1e3:.1f} ms"],
        ["a light operation (`nn.Linear`)", f"{operation_seconds() * 1e6:.1f} us"],
    ]
    lines = [
        f"# The host's time for a plan: SDXL's UNet in {BUDGET_GIB} GiB, no GPU",
        "",
        *environment("python -m benchmarks.host_cost_on_nullcuda"),
        "- PyTorch's CUDA build on the null card (tests/nullcuda); nothing here was measured on a GPU. Best of",
        f"  {STEPS * CALLS} calls.",
        "",
        *table(["what", "host"], rows),
    ]
    print("\n".join(lines), write_result("host_cost_nullcuda", lines), sep="\n")


def few_bytes(copy: Callable[..., Any]) -> Callable[..., Any]:
    """Copies of groups end after some bytes: moving gigabytes of the host's is not what is timed."""

    def copied(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if self.is_cuda and source.is_cpu and self.dtype == torch.uint8:
            copy(self[:COPIED_BYTES], source[:COPIED_BYTES], non_blocking)
            return self
        return copy(self, source, non_blocking)  # type: ignore[no-any-return]

    return copied


def timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - began)

    return call


def of_unet(enter: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The same of what begins a component's call, of the UNet's alone."""
    timed_enter = timed(enter, spent)

    def entering(self: Conductor, component: Any, method: str | None) -> Any:
        return (timed_enter if component.name == "unet" else enter)(self, component, method)

    return entering


def operation_seconds() -> float:
    """Of a light operation, the best of ten times many."""
    linear, x = torch.nn.Linear(8, 8).to("cuda").requires_grad_(False), torch.ones(8, 8, device="cuda")
    spent: list[float] = []
    many = timed(lambda: [linear(x) for _ in range(OPERATIONS)], spent)
    for _ in range(10):
        many()
    return min(spent) / OPERATIONS


if __name__ == "__main__":
    main()
