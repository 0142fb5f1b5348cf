"""What needs a CUDA GPU: run with `make gpu`; fails without one."""

import gc
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline

from tests import tiny_pipelines
from vramtune import load
from vramtune.errors import BudgetError
from vramtune.machine.live import holders, live_device, this_gpu
from vramtune.offload import pinned
from vramtune.offload.install import install
from vramtune.offload.pinned import pinned_buffer
from vramtune.predict import predict_profile
from vramtune.schema import Plan, Profile
from vramtune.tuner.search import choose_plan
from vramtune.units import GIB


@pytest.mark.gpu
def test_this_machines_gpu_is_known_and_its_memory_is_the_drivers() -> None:
    device = this_gpu()
    free, total = torch.cuda.mem_get_info()
    assert device.usable_bytes <= total
    assert device.usable_bytes <= free + GIB  # the context and what PyTorch caches are usable too
    assert device.total_bytes == pytest.approx(total, rel=0.1)


@pytest.mark.gpu
def test_live_facts_are_plausible() -> None:
    device = live_device(torch.device("cuda"))
    assert all(fact > 0 for fact in astuple(device) if type(fact) in (int, float))
    assert all(rate > 0 for rate in device.flops_per_second.values())
    assert device.flops_per_second["float16"] > device.flops_per_second["float32"]
    assert all(0.1 < share < 1.2 for share in device.efficiency_fraction.values())
    assert device.pinned_copy_bytes_per_second > device.pageable_copy_bytes_per_second
    assert device.pinned_copy_bytes_per_second < device.memory_bytes_per_second
    assert device.overlap_fraction <= 1
    assert device.copy_latency_seconds < 1e-4
    assert device.launch_seconds < 1e-4
    assert device.usable_bytes <= device.total_bytes
    assert device.context_bytes < 2 * GIB
    assert device.source == "measured"


@pytest.mark.gpu
def test_the_others_hold_no_more_than_is_not_usable() -> None:
    device = live_device(torch.device("cuda"))
    others = holders(torch.device("cuda"))
    assert sum(holder.num_bytes or 0 for holder in others) <= device.total_bytes - device.usable_bytes + GIB


@pytest.mark.gpu
def test_probing_leaves_only_the_workspaces() -> None:
    device = live_device(torch.device("cuda"))
    assert torch.cuda.memory_reserved() <= device.workspace_bytes


# ---------------------------------------------------------------------------------------------------
# Tiny pipelines under a plan

NAMES = ["flux", "sdxl", "wan"]
LITTLE_BYTES = 32 * 2**10
"""Of the host's memory: less than any of these pipelines takes."""
STREAMING = """
from tests.test_on_gpu import tight_plan
from diffusers import DiffusionPipeline, FluxPipeline

from tests import tiny_pipelines
from vramtune.offload.install import install
import torch
pipe = tiny_pipelines.build("flux")
with install(pipe, tight_plan("flux", lockable_bytes=LOCKABLE), device="cuda") as installation:
    for _ in range(2):
        tiny_pipelines.run(pipe, "flux")
    torch.cuda.synchronize()
    print("moved", installation.measured.moved_bytes)
"""


def profiled(name: str) -> Profile:
    """The tiny pipeline's call on this machine's GPU."""
    kwargs = {"prompt": "a photo of a cat", "num_inference_steps": 2, "output_type": "pt", **tiny_pipelines.CALL[name]}
    device = live_device(torch.device("cuda"))
    return predict_profile(tiny_pipelines.build(name), call_kwargs=kwargs, device=device)


def tight_plan(name: str, *, lockable_bytes: int | None = None) -> Plan:
    """For the smallest budget that works: as much is streamed as can be. What may not be page-locked is staged."""
    profile = profiled(name)
    if lockable_bytes is not None:
        profile = replace(profile, device=replace(profile.device, lockable_bytes=lockable_bytes))
    with pytest.raises(BudgetError) as raised:
        choose_plan(profile, 1)
    return choose_plan(profile, raised.value.smallest_bytes)


# PyTorch looks at it once, at the process's first matrix product, and from then on warns if it was not there.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Kernels whose bits do not depend on when they run."""
    was_benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = was_benchmark


def held_bytes() -> int:
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic")
@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
@pytest.mark.parametrize("name", NAMES)
def test_a_tuned_pipeline_gives_the_resident_ones_bits(name: str) -> None:
    resident = tiny_pipelines.build(name).to("cuda")
    expected = tiny_pipelines.run(resident, name).cpu()
    assert torch.equal(tiny_pipelines.run(resident, name).cpu(), expected)
    pipe = tiny_pipelines.build(name)
    with install(pipe, tight_plan(name), device="cuda") as installation:
        for _ in range(2):
            assert torch.equal(tiny_pipelines.run(pipe, name).cpu(), expected)
        assert installation.measured is not None
        assert installation.measured.moved_bytes > 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_a_tuned_pipeline_stays_under_a_cap_on_the_allocator(name: str) -> None:
    plan = tight_plan(name)
    pipe = tiny_pipelines.build(name)
    held_bytes()
    torch.cuda.empty_cache()
    limit_bytes = plan.budget_bytes - live_device(torch.device("cuda")).context_bytes
    torch.cuda.set_per_process_memory_fraction(limit_bytes / torch.cuda.mem_get_info()[1])
    try:
        with install(pipe, plan, device="cuda") as installation:
            for _ in range(2):
                tiny_pipelines.run(pipe, name)
                assert installation.measured is not None
                assert installation.measured.num_out_of_memory == 0
                assert installation.measured.peak_bytes <= limit_bytes  # no context: install() was told of none
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_remove_returns_the_memory(name: str) -> None:
    profile = profiled(name)
    plan = choose_plan(profile, profile.device.usable_bytes)
    pipe = tiny_pipelines.build(name)
    before_bytes = held_bytes()
    installation = install(pipe, plan, device="cuda")
    resident_bytes = held_bytes() - before_bytes
    assert resident_bytes > 0
    tiny_pipelines.run(pipe, name)
    at_rest_bytes = held_bytes()
    installation.remove()
    assert at_rest_bytes - held_bytes() == resident_bytes
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert all(tensor.device.type == "cpu" for part in parts for tensor in part.state_dict().values())


@pytest.mark.gpu
def test_no_kernel_is_blamed_for_memory_that_could_not_be_locked() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    buffer = pinned_buffer(mmap.PAGESIZE, device)
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    assert int(runtime.cudaHostRegister(buffer.data_ptr(), mmap.PAGESIZE, 0)) != 0  # it is locked already
    pinned._clear_last_error(device)
    assert (torch.ones(1, device=device) + 1).item() == 2


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic")
@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
@pytest.mark.parametrize("name", NAMES)
def test_what_may_not_be_page_locked_is_staged_to_the_resident_ones_bits(name: str) -> None:
    expected = tiny_pipelines.run(tiny_pipelines.build(name).to("cuda"), name).cpu()
    plan, pipe = tight_plan(name, lockable_bytes=LITTLE_BYTES), tiny_pipelines.build(name)
    assert plan.estimate.pageable_bytes > plan.estimate.locked_bytes
    with install(pipe, plan, device="cuda"):
        for _ in range(2):
            assert torch.equal(tiny_pipelines.run(pipe, name).cpu(), expected)


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic")
@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
def test_weights_in_files_are_read_ahead_staged_and_give_the_resident_ones_bits(flux_in_files: Path) -> None:
    expected = tiny_pipelines.run(FluxPipeline.from_pretrained(flux_in_files).to("cuda"), "flux").cpu()
    kwargs = {"num_inference_steps": 2, "output_type": "pt", **tiny_pipelines.CALL["flux"]}
    load_here = partial(
        load, FluxPipeline, flux_in_files, ram_gb=LITTLE_BYTES / GIB, call_kwargs=kwargs, progress=False
    )
    with pytest.raises(BudgetError) as raised:
        load_here(1 / GIB)
    pipe, tuned = load_here((raised.value.smallest_bytes + 1) / GIB, cache_embeddings=True)
    with tuned:
        assert tuned.plan.estimate.file_bytes > 0
        for _ in range(3):
            assert torch.equal(tiny_pipelines.run(pipe, "flux").cpu(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("lockable_bytes", [None, LITTLE_BYTES], ids=["page-locked", "staged"])
def test_the_streaming_loop_is_free_of_races_by_pytorchs_sanitizer(lockable_bytes: int | None) -> None:
    """It follows every kernel and event, and raises where two streams touch the same memory in no order."""
    done = subprocess.run(
        [sys.executable, "-c", f"LOCKABLE = {lockable_bytes}\n{STREAMING}"],
        env={**os.environ, "TORCH_CUDA_SANITIZER": "1"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.split("moved ")[1]) > 0
    assert "CUDASanitizerErrors" not in done.stderr


# ---------------------------------------------------------------------------------------------------
# torch.compile


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic")
@pytest.mark.filterwarnings("ignore")  # the compiler's own are not ours to mend
@pytest.mark.parametrize("name", ["flux", "sdxl"])
def test_blocks_compiled_by_inductor_stream_as_they_are_and_give_their_bits(name: str) -> None:
    def compiled() -> DiffusionPipeline:
        pipe = tiny_pipelines.build(name)
        denoiser = pipe.transformer if name == "flux" else pipe.unet
        denoiser.compile_repeated_blocks(fullgraph=True)
        return pipe

    torch._dynamo.reset()
    expected = tiny_pipelines.run(compiled().to("cuda"), name)
    torch._dynamo.reset()
    plan, pipe = tight_plan(name), compiled()
    with install(pipe, plan, device="cuda") as runtime:
        assert torch.equal(tiny_pipelines.run(pipe, name), expected)
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert torch.equal(tiny_pipelines.run(pipe, name), expected)
        measured = runtime.measured
    assert measured is not None
    assert measured.num_out_of_memory == 0
    assert measured.peak_bytes <= plan.budget_bytes
