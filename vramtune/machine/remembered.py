"""What a GPU of this machine has shown, kept from process to process: its rates, its context, what calls took.

One file for each GPU under one driver and one PyTorch, in the user's cache folder; who deletes it loses half a second.
GPUs that NVIDIA's driver does not answer for have none.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import pynvml

from vramtune.errors import FileError
from vramtune.machine import nvml
from vramtune.paths import cache_folder
from vramtune.schema import Device, Measurement, Plan, Remembered, Spread
from vramtune.schema.files import Saved

if TYPE_CHECKING:
    import torch

MOST_CALLS = 50
"""Different calls of which it is known what they took; the oldest goes first."""
ENOUGH_CALLS = 3
"""From so many on their spread says how sure a prediction is."""
LEAST_SPREAD = Spread(low=0.9, high=1.1)
"""A few calls that agree say no more than this."""

MOST_TIMES = 20
"""What took longer than that, or as much less, was another call."""
SAME_FRACTION = 0.02
"""What is no further off is not written again."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What rates depend on."""

    gpu: str
    """The GPU's own number (UUID)."""
    driver: str
    torch: str

    @property
    def path(self) -> Path:
        """The file."""
        name = hashlib.sha256(f"{self.gpu} {self.driver} {self.torch}".encode()).hexdigest()[:16]
        return cache_folder() / f"gpu-{name}.json"


def identity(device: "torch.device") -> Identity | None:
    """Of a device with an index; None where NVIDIA's driver does not answer for it."""
    import torch

    if device.type != "cuda":
        return None
    try:
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        return Identity(gpu=uuid, driver=nvml.driver_version(), torch=torch.__version__)
    except pynvml.NVMLError:
        return None


def recall(device: "torch.device") -> Remembered | None:
    """What is remembered of a device; None where nothing is, or its file cannot be read, which is logged."""
    if (known := identity(device)) is None:
        return None
    try:
        return Remembered.load(known.path) if known.path.exists() else None
    except (OSError, FileError) as error:  # OSError: a folder that may not be looked into
        logger.warning("What was measured here before is lost: %s", error)
        return None


def remember(device: "torch.device", facts: Device) -> None:
    """Keep what was measured; what calls took before stays."""
    if (known := identity(device)) is None:
        return
    before = recall(device)
    calls = before.times_predicted if before is not None else {}
    keep(known.path, Remembered(measured_on=date.today().isoformat(), facts=facts, times_predicted=calls))


def remember_call(device: "torch.device", call: str, times_predicted: float) -> None:
    """Keep how many times what the rates alone say a call's arithmetic took; nothing where no rates are remembered."""
    known, before = identity(device), recall(device)
    if known is None or before is None or not 1 / MOST_TIMES < times_predicted < MOST_TIMES:
        return
    if abs(times_predicted / before.times_predicted.get(call, float("inf")) - 1) < SAME_FRACTION:
        return
    others = {name: times for name, times in before.times_predicted.items() if name != call}
    calls = dict([*others.items(), (call, times_predicted)][-MOST_CALLS:])
    keep(known.path, replace(before, times_predicted=calls))


def remember_measurement(device: "torch.device", plan: Plan, times_predicted: float, measured: Measurement) -> None:
    """Keep what a call's arithmetic took beside what the rates said; what the plan had of that already is in it.

    Nothing where it went otherwise than planned: other stages, or out of memory.
    """
    is_as_planned = [stage.name for stage in measured.stages] == [stage.name for stage in plan.stages]
    if is_as_planned and not measured.num_out_of_memory and plan.estimate.compute_seconds:
        seconds = measured.seconds - sum(stage.exposed_copy_seconds for stage in measured.stages)
        call = f"{plan.pipeline_class}.{plan.workload.method} {plan.workload.call_kwargs}"
        remember_call(device, call, times_predicted * seconds / plan.estimate.compute_seconds)


def forget() -> int:
    """Delete all files, those of storage's rates too; their number. Raises a `FileError` for one that cannot be deleted."""
    files = sorted(file for kind in ("gpu", "storage") for file in cache_folder().glob(f"{kind}-*.json"))
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise FileError(f"Cannot delete {str(file)!r}: {error.strerror}.") from error
    return len(files)


def corrected(facts: Device, times_predicted: Mapping[str, float]) -> Device:
    """The facts with what calls took: the median, and how sure it makes predictions once several are known."""
    if not times_predicted:
        return facts
    times = sorted(times_predicted.values())
    usual = median(times)
    gpu = facts.spreads.gpu
    if len(times) >= ENOUGH_CALLS:
        gpu = Spread(low=min(times[0] / usual, LEAST_SPREAD.low), high=max(times[-1] / usual, LEAST_SPREAD.high))
    return replace(facts, times_predicted=usual, spreads=replace(facts.spreads, gpu=gpu))


def keep(path: Path, noun: Saved) -> None:
    """Write what was measured, if that can be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        noun.save(path)
    except (OSError, FileError) as error:  # a home that cannot be written to costs half a second, the next time
        logger.debug("not remembered: %s", error)
