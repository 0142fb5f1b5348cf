"""What `vramtune doctor` says: each fact of a machine judged, with what to do, as rows, text and JSON."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from rich.console import Group
from rich.text import Text

from vramtune.reports.columns import Cell, Column, Table, Tone, cells, table_of, words
from vramtune.reports.json_output import object_json
from vramtune.reports.terminal import STYLES, table_text
from vramtune.schema import Accelerator, Device, Driver, Holder, Host, Machine, Package, Source
from vramtune.units import GIB, format_bytes, format_rate

Status = Literal["ok", "attention", "missing"]
"""`missing` is what autotune cannot do without."""

TONES: dict[Status, Tone] = {"ok": "good", "attention": "attention", "missing": "bad"}
NAMED_PACKAGES = ("Python", "torch", "diffusers", "accelerate", "transformers")
"""These have a line each even where all is well."""
HELD_FRACTION = 0.1
"""Share of the GPU's memory: others that hold more deserve attention."""
USUAL_LINK_FRACTION = 0.6
"""Share of the usual copy rate: a slot with half of the lanes is below it."""
USUAL_ARITHMETIC_FRACTION = 0.35
"""Share of the data sheet's rate: large matrix products reach twice that."""
LEAST_OVERLAP_FRACTION = 0.5
"""Share of the pinned rate that should remain while the GPU computes: below it, streaming hides little."""
LEAST_HOST_BYTES = 8 * GIB
"""SDXL's weights and the process itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRow:
    """One fact, judged."""

    subject: str
    finding: str
    status: Status = "ok"
    advice: str = ""
    """What to do about it; empty where all is well."""
    source: Source | None = None
    """`measured` by a probe just now; None for what the system tells of itself."""


def is_ready(rows: Iterable[CheckRow]) -> bool:
    """Whether autotune would work."""
    return all(row.status != "missing" for row in rows)


def check_rows(machine: Machine) -> tuple[CheckRow, ...]:
    """Software, GPU, host: in the order in which to repair them."""
    gpu = _no_gpu(machine.driver) if machine.accelerator is None else _accelerator(machine.accelerator)
    return (*_packages(machine), *_build(machine), *_driver(machine), *gpu, *_host(machine))


def _ok(subject: str, finding: str, *, source: Source | None = None) -> CheckRow:
    return CheckRow(subject=subject, finding=finding, source=source)


def _needed(subject: str, finding: str, advice: str, *, fault: bool = True) -> CheckRow:
    """What autotune cannot do without: missing, with advice, if there is a fault."""
    row = _ok(subject, finding)
    return replace(row, status="missing", advice=advice) if fault else row


def _noted(subject: str, finding: str, advice: str, *, fault: bool = True, source: Source | None = None) -> CheckRow:
    """What deserves attention, with advice, if there is a fault."""
    row = _ok(subject, finding, source=source)
    return replace(row, status="attention", advice=advice) if fault else row


# ---------------------------------------------------------------------------------------------------
# Software


def _packages(machine: Machine) -> Iterator[CheckRow]:
    by_name = {package.name: package for package in machine.packages}
    others = [package for name, package in by_name.items() if name not in NAMED_PACKAGES]
    yield from (_package(by_name[name]) for name in NAMED_PACKAGES)
    yield from (_package(package) for package in others if not package.is_supported)
    num_supported = sum(package.is_supported for package in others)
    yield _ok("other packages", f"{num_supported} of {len(others)} as required")


def _package(package: Package) -> CheckRow:
    name, required = package.name, package.required
    finding = f"{package.installed} (supported: {required})" if package.installed else "not installed"
    advice = f'pip install --upgrade "{name}{required}".' if name != "Python" else f"Install Python {required}."
    return _needed(name, finding, advice, fault=not package.is_supported)


def _build(machine: Machine) -> Iterator[CheckRow]:
    """What PyTorch is built for; nothing where it is not installed, which has its line already."""
    if machine.torch_build is not None:
        yield _needed(
            "torch build",
            machine.torch_build,
            fault=machine.accelerator is None and machine.torch_build == "CPU only",
            advice="Install the build for your GPU: https://pytorch.org/get-started/locally (on Windows, pip's own "
            "build is for CPUs only).",
        )
    elif any(package.name == "torch" and package.installed for package in machine.packages):
        yield _needed(
            "torch build",
            f"unknown: PyTorch does not import ({machine.torch_error})",
            "Reinstall it: pip install --force-reinstall torch.",
        )


# ---------------------------------------------------------------------------------------------------
# GPU


def _driver(machine: Machine) -> Iterator[CheckRow]:
    """NVIDIA's driver; nothing where another maker's accelerator is at work."""
    driver, build = machine.driver, machine.torch_build or ""
    if driver is not None:
        needed = build.removeprefix("CUDA ")
        yield _needed(
            "NVIDIA driver",
            f"{driver.version}, runs CUDA up to {driver.cuda_version}",
            fault=build.startswith("CUDA ") and _major(needed) > _major(driver.cuda_version),
            advice=f"Too old for PyTorch's {build}: update the driver, or install a PyTorch for an older CUDA.",
        )
    elif machine.accelerator is None:
        yield _needed(
            "NVIDIA driver",
            "none",
            "Install it (https://www.nvidia.com/drivers); in a container, pass the GPU in (docker run --gpus all).",
        )


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _no_gpu(driver: Driver | None) -> Iterator[CheckRow]:
    finding = "none that PyTorch can use"
    advice = 'Profiles, plans and reports need none: name a card, as in --gpu "RTX 4060".'
    if driver is not None and driver.gpu is not None:
        finding = f"{driver.gpu}, but PyTorch cannot use it"
        advice = "Repair what is missing above; python -c 'import torch; torch.cuda.init()' says what is wrong."
    yield _needed("GPU", finding, advice)


def _accelerator(accelerator: Accelerator) -> Iterator[CheckRow]:
    count = f", one of {accelerator.count}" if accelerator.count > 1 else ""
    name = f"{accelerator.name} ({accelerator.label}{count})"
    device, holders = accelerator.device, _holders(accelerator.holders)
    if device is None:
        yield _needed(
            "GPU",
            f"{name}; its probe failed: {accelerator.error}",
            f"autotune begins with that probe. {holders or 'Free its memory'}; then try again.",
        )
        return
    yield _ok("GPU", name)
    yield _noted(
        "GPU memory",
        f"{format_bytes(device.usable_bytes)} usable of {format_bytes(device.total_bytes)}",
        f"{holders or 'The driver does not say who holds the rest; nvidia-smi may'}.",
        fault=device.total_bytes - device.usable_bytes > HELD_FRACTION * device.total_bytes,
    )
    context, workspaces = format_bytes(device.context_bytes), format_bytes(device.workspace_bytes)
    yield _ok("GPU context", f"{context}, and {workspaces} for libraries' workspaces", source="measured")
    yield from _rates(device, accelerator.listed)
    yield from _remembered(accelerator)


def _remembered(accelerator: Accelerator) -> Iterator[CheckRow]:
    """What predictions on this machine rest on; nothing where the driver does not say which GPU this is."""
    known = accelerator.remembered
    if known is None:
        return
    finding = f"these rates, measured on {known.measured_on}"
    if times := sorted(known.times_predicted.values()):
        calls = "1 call took" if len(times) == 1 else f"{len(times)} different calls took"
        usual = accelerator.device.times_predicted if accelerator.device is not None else 1.0
        finding += f"; {calls} {times[0]:.2f} to {times[-1]:.2f} times what they say, predictions take {usual:.2f}"
    yield _ok("remembered", f"{finding} ({accelerator.remembered_path}; vramtune doctor --forget)")


def _holders(holders: Iterable[Holder]) -> str:
    """Who holds the GPU's memory, and what to do about it."""
    named = [_holder(holder) for holder in holders]
    return f"End what you do not need: {', '.join(named)}" if named else ""


def _holder(holder: Holder) -> str:
    program = re.split(r"[/\\]", holder.name)[-1] if holder.name else "a process"
    held = f" holds {format_bytes(holder.num_bytes)}" if holder.num_bytes is not None else ""
    return f"{program} (pid {holder.pid}){held}"


def _rates(device: Device, listed: Device | None) -> Iterator[CheckRow]:
    """What the probe timed, held against the data sheet of a card that is listed."""
    pinned, usual = (device.pinned_copy_bytes_per_second, listed.pinned_copy_bytes_per_second if listed else 0.0)
    yield _noted(
        "copies, pinned",
        format_rate(pinned),
        f"Usual for this card is {format_rate(usual)}. Check that its slot has all its lanes: nvidia-smi -q, under "
        "GPU Link Info.",
        fault=pinned < USUAL_LINK_FRACTION * usual,
        source="measured",
    )
    pageable, back = format_rate(device.pageable_copy_bytes_per_second), format_rate(device.readback_bytes_per_second)
    yield _ok("copies, pageable", f"{pageable}, and back {back}", source="measured")
    yield _noted(
        "copies, overlapped",
        f"{device.overlap_fraction:.0%} of the pinned rate while the GPU computes",
        "Streamed weights arrive at this lower rate: prefer a budget that keeps more of them on the GPU.",
        fault=device.overlap_fraction < LEAST_OVERLAP_FRACTION,
        source="measured",
    )
    peak, rates = max(listed.flops_per_second.values()) if listed else 0.0, device.flops_per_second
    yield _noted(
        "arithmetic",
        ", ".join(f"{dtype} {rate / 1e12:.3g}" for dtype, rate in rates.items()) + " TFLOP/s",
        f"Its data sheet says {peak / 1e12:.3g}. Check whether something else is using it, or its power is limited.",
        fault=max(rates.values()) < USUAL_ARITHMETIC_FRACTION * peak,
        source="measured",
    )
    yield _ok("GPU memory rate", format_rate(device.memory_bytes_per_second), source="measured")


# ---------------------------------------------------------------------------------------------------
# Host


def _host(machine: Machine) -> Iterator[CheckRow]:
    host = machine.host
    yield _host_memory(host)
    is_nvidia = machine.accelerator is None or machine.driver is not None
    if host.locked_limit_bytes is not None and not is_nvidia:
        yield _noted(
            "locked memory",
            f"at most {format_bytes(host.locked_limit_bytes)} (ulimit -l)",
            "Weights that leave the GPU are page-locked on the host: ulimit -l unlimited.",
        )


def _host_memory(host: Host) -> CheckRow:
    if host.total_bytes is None or host.available_bytes is None:
        return _ok("host memory", "unknown on this system")
    finding = f"{format_bytes(host.available_bytes)} available of {format_bytes(host.total_bytes)}"
    available_bytes, limit_bytes = host.available_bytes, host.control_group_limit_bytes
    if limit_bytes is not None and limit_bytes < host.total_bytes:
        finding += f"; this process's group may use {format_bytes(limit_bytes)}"
        available_bytes = min(available_bytes, limit_bytes)
    return _noted(
        "host memory",
        finding,
        "Weights that leave the GPU stay here, page-locked: SDXL's take 6.5 GiB, FLUX.1's 31.4 GiB.",
        fault=available_bytes < LEAST_HOST_BYTES,
    )


# ---------------------------------------------------------------------------------------------------
# Text and JSON


def check_report(rows: tuple[CheckRow, ...]) -> Group:
    """The verdict, then a line for each fact, with what to do under it."""
    return Group(_verdict(rows), "", table_text(check_table(rows)))


def check_table(rows: tuple[CheckRow, ...]) -> Table:
    """The facts, each with what to do under it."""
    return table_of(
        "",
        None,
        rows,
        words("what", lambda row: row.subject),
        cells(Column(heading="status", alignment="left"), lambda row: Cell(text=row.status, tone=TONES[row.status])),
        words("finding, and what to do", _finding),
    )


def _finding(row: CheckRow) -> str:
    finding = f"{row.finding}, {row.source}" if row.source else row.finding
    return "\n".join(filter(None, (finding, row.advice)))


def _verdict(rows: tuple[CheckRow, ...]) -> Text:
    missing = [row.subject for row in rows if row.status == "missing"]
    noted = [row.subject for row in rows if row.status == "attention"]
    more = f" Deserves attention: {', '.join(noted)}." if noted else ""
    if missing:
        return Text.assemble(
            ("Not ready: ", STYLES["bad"]),
            f"autotune cannot work on this machine. Missing: {', '.join(missing)}.{more}",
        )
    return Text.assemble(("Ready: ", STYLES["good"]), f"autotune works on this machine.{more}")


def check_json(machine: Machine, rows: tuple[CheckRow, ...]) -> str:
    """One object: `ready`, the checks, and the facts they rest on."""
    return object_json(ready=is_ready(rows), checks=rows, machine=machine)
