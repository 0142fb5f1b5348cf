"""In how little memory a VAE decodes on this machine's GPU, beside what is predicted.

    python -m benchmarks.least_memory_on_gpu                 # SD 1.5, SDXL, FLUX.1 and Wan 2.1 1.3B
    python -m benchmarks.least_memory_on_gpu sdxl

The allocator's limit is lowered until PyTorch runs out of memory. On the way it first gives cached segments back, then
cuDNN falls back to engines that need no workspace: both cost time, which is shown. Writes
`benchmarks/results/least_memory_<gpu>_<date>.md`.
"""

import argparse
import gc
import re
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.on_gpu import materialise
from benchmarks.results_file import environment, table, write_result
from vramtune import catalog
from vramtune.caching_allocator import cached_within
from vramtune.machine.live import live_device
from vramtune.predict import predict_profile
from vramtune.schema import Activity
from vramtune.units import GIB

MODELS = ("sd15", "sdxl", "flux.1-dev", "wan2.1-1.3b")
LIMITS = (1.3, 1.1, 1.05, 1.02, 1.0, 0.98, 0.95, 0.9, 0.8)
"""Of what is predicted."""
HEADER = ["VAE", "dtype", "limit GiB", "of predicted", "outcome", "seconds", "reserved GiB", "predicted", "tries again"]
DEVICE = torch.device("cuda")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    rows: list[list[str]] = []
    for model in parser.parse_args().models:
        rows += decoded(model)
        path = write(rows)
    print(path.read_text(), path, sep="\n")


def write(rows: list[list[str]]) -> Path:
    """The table so far, so that a run that is cut keeps what it measured."""
    name = torch.cuda.get_device_name()
    lines = [
        f"# In how little memory a VAE decodes, measured on {name}",
        "",
        *environment("python -m benchmarks.least_memory_on_gpu", gpu=name),
        "- The limit is what PyTorch's allocator may hold beyond the weights, as a multiple of what is predicted for the",
        "  decode at the pipeline's default size. Predicted: what is reserved under the limit, without arenas.",
        "  Seconds: the third decode in a row. Tries again: how often the allocator gave its cache back and tried once more, in all three.",
        "",
        *table(HEADER, rows),
    ]
    return write_result("least_memory_" + re.sub(r"\W+", "_", name).lower(), lines)


def decoded(model: str) -> list[list[str]]:
    """The rows of one model."""
    pipe = catalog.load(model)
    profile = predict_profile(
        pipe, call_kwargs={"prompt": "a cat", "num_inference_steps": 2}, device=live_device(DEVICE)
    )
    (stage,) = [stage for stage in profile.stages if stage.name == "vae.decode"]
    seen = inputs_of_decode(pipe)
    vae = pipe.vae
    materialise(vae, DEVICE)
    latents = torch.randn(seen[0], device=DEVICE, dtype=seen[1])
    vae.to(latents.dtype)
    (decode,) = stage.activities
    return [attempt(model, vae, latents, share, decode) for share in LIMITS]


def said_bytes(decode: Activity, limit_bytes: float) -> int:
    """What a profile says that PyTorch reserves for it under a limit, or under the lowest one."""
    return decode.activation_bytes + cached_within(decode.cached_bytes, limit_bytes - decode.activation_bytes)


def inputs_of_decode(pipe: Any) -> tuple[torch.Size, torch.dtype]:
    """Shape and dtype of the latents in the pipeline's default call."""
    scale = pipe.vae_scale_factor if hasattr(pipe, "vae_scale_factor") else pipe.vae_scale_factor_spatial
    config = pipe.vae.config
    if hasattr(pipe, "vae_scale_factor_temporal"):
        return torch.Size((1, config.z_dim, 21, 480 // scale, 832 // scale)), torch.float32
    size = pipe.default_sample_size if hasattr(pipe, "default_sample_size") else pipe.unet.config.sample_size
    dtype = torch.float32 if config.force_upcast and model_is_half(pipe) else pipe.vae.dtype
    return torch.Size((1, config.latent_channels, size, size)), dtype


def model_is_half(pipe: Any) -> bool:
    """SDXL's pipeline upcasts a float16 VAE that asks for it; SD 1.5's does not."""
    return type(pipe).__name__.startswith("StableDiffusionXL") and pipe.vae.dtype == torch.float16


def attempt(model: str, vae: Any, latents: torch.Tensor, share: float, decode: Activity) -> list[str]:
    gc.collect()
    torch.cuda.empty_cache()
    held, total = torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[1]
    limit_bytes = share * decode.activation_bytes
    torch.cuda.set_per_process_memory_fraction(min(1.0, (held + limit_bytes) / total))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["num_alloc_retries"]
    seconds, outcome = 0.0, "ran"
    try:
        for _ in range(3):
            torch.cuda.synchronize()
            began = time.perf_counter()
            with torch.no_grad():
                vae.decode(latents)
            torch.cuda.synchronize()
            seconds = time.perf_counter() - began
    except torch.OutOfMemoryError:
        outcome = "out of memory"
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    reserved = torch.cuda.max_memory_reserved() - held
    again = torch.cuda.memory_stats()["num_alloc_retries"] - before
    dtype = str(latents.dtype).removeprefix("torch.")
    shown = f"{seconds:.3f}" if outcome == "ran" else ""
    said = said_bytes(decode, limit_bytes)
    return [
        model, dtype, f"{limit_bytes / GIB:.2f}", f"{share:.0%}", outcome, shown, f"{reserved / GIB:.2f}", f"{said / GIB:.2f}",
        str(again),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
