"""What `vramtune doctor` says: each fact of a machine judged, with what to do, as rows, text and JSON."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from vramtune.reports.json_output import object_json
from vramtune.schema import Device, Source
from vramtune.schema.machine import Accelerator, Driver, Holder, Host, Machine, Package
from vramtune.units import GIB, format_bytes

State = Literal["ok", "attention", "missing"]

STYLES: dict[State, str] = {"ok": "green", "attention": "bold yellow", "missing": "bold red"}
NAMED_PACKAGES = ("Python", "torch", "diffusers", "accelerate", "transformers")
"""These have a line each even where all is well."""
HELD_FRACTION = 0.1
"""Of the GPU's memory: others that hold more deserve attention."""
USUAL_LINK_FRACTION = 0.6
"""Of the usual copy rate: a slot with half of the lanes is below it."""
USUAL_ARITHMETIC_FRACTION = 0.35
"""Of the data sheet's rate: large matrix products reach twice that."""
LEAST_OVERLAP_FRACTION = 0.5
LEAST_HOST_BYTES = 8 * GIB
"""SDXL's weights and the process itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRow:
    """One fact, judged: `missing` is what autotune cannot do without."""

    subject: str
    found: str
    state: State = "ok"
    advice: str = ""
    source: Source | None = None
    """`measured` by a probe just now; None for what the system tells of itself."""


def is_ready(rows: Iterable[CheckRow]) -> bool:
    """Whether autotune would work."""
    return all(row.state != "missing" for row in rows)


def check_rows(machine: Machine) -> tuple[CheckRow, ...]:
    """Software, GPU, host: in the order in which to repair them."""
    return tuple(_rows(machine))


def _rows(machine: Machine) -> Iterator[CheckRow]:
    yield from _packages(machine.packages)
    yield from _build(machine)
    yield from _driver(machine)
    if machine.accelerator is None:
        yield _no_gpu(machine.driver)
    else:
        yield from _accelerator(machine.accelerator)
    yield from _host(machine)


# ---------------------------------------------------------------------------------------------------
# Software


def _packages(packages: Iterable[Package]) -> Iterator[CheckRow]:
    by_name = {package.name: package for package in packages}
    others = [package for name, package in by_name.items() if name not in NAMED_PACKAGES]
    yield from (_package(by_name[name]) for name in NAMED_PACKAGES)
    yield from (_package(package) for package in others if not package.is_supported)
    num_supported = sum(package.is_supported for package in others)
    yield CheckRow(subject="other packages", found=f"{num_supported} of {len(others)} as required")


def _package(package: Package) -> CheckRow:
    wanted = f'"{package.name}{package.required}"'
    how = (
        f"pip install --upgrade {wanted}"
        if package.name != "Python"
        else f"Install Python {package.required}"
    )
    found = f"{package.found} (supported: {package.required})" if package.found else "not installed"
    return CheckRow(
        subject=package.name,
        found=found,
        state="ok" if package.is_supported else "missing",
        advice="" if package.is_supported else f"{how}.",
    )


def _build(machine: Machine) -> Iterator[CheckRow]:
    """What PyTorch is built for; nothing where it is not installed, which has its line already."""
    subject = "torch build"
    if machine.torch_build is not None:
        works = machine.accelerator is not None or machine.torch_build != "CPU only"
        yield CheckRow(
            subject=subject,
            found=machine.torch_build,
            state="ok" if works else "missing",
            advice=""
            if works
            else "Install the build for your GPU: https://pytorch.org/get-started/locally (pip's own is the CPU's "
            "on Windows).",
        )
    elif any(package.name == "torch" and package.found for package in machine.packages):
        yield CheckRow(
            subject=subject,
            found=f"unknown: it does not import ({machine.torch_error})",
            state="missing",
            advice="Install it anew: pip install --force-reinstall torch.",
        )


# ---------------------------------------------------------------------------------------------------
# GPU


def _driver(machine: Machine) -> Iterator[CheckRow]:
    """NVIDIA's driver; nothing where another maker's accelerator is at work."""
    subject = "NVIDIA driver"
    driver = machine.driver
    if driver is not None:
        build = machine.torch_build or ""
        is_old = build.startswith("CUDA ") and _major(build.removeprefix("CUDA ")) > _major(
            driver.cuda_version
        )
        yield CheckRow(
            subject=subject,
            found=f"{driver.version}, runs CUDA up to {driver.cuda_version}",
            state="missing" if is_old else "ok",
            advice=f"Too old for PyTorch's {build}: update the driver, or install a PyTorch built for less."
            if is_old
            else "",
        )
    elif machine.accelerator is None:
        yield CheckRow(
            subject=subject,
            found="none",
            state="missing",
            advice="Install it (https://www.nvidia.com/drivers); into a container the GPU must be passed "
            "(docker run --gpus all).",
        )


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _no_gpu(driver: Driver | None) -> CheckRow:
    if driver is not None and driver.card is not None:
        return CheckRow(
            subject="GPU",
            found=f"{driver.card}, but PyTorch cannot use it",
            state="missing",
            advice="Repair what is missing above; python -c 'import torch; torch.cuda.init()' says what is wrong.",
        )
    return CheckRow(
        subject="GPU",
        found="none that PyTorch can use",
        state="missing",
        advice='Profiles, plans and reports need none: name a card, as in --gpu "RTX 4060".',
    )


def _accelerator(found: Accelerator) -> Iterator[CheckRow]:
    count = f", one of {found.count}" if found.count > 1 else ""
    name = f"{found.name} ({found.label}{count})"
    if found.device is None:
        yield CheckRow(
            subject="GPU",
            found=f"{name}; its probe failed: {found.error}",
            state="missing",
            advice=f"autotune begins with that probe. {_holders(found.holders) or 'Free its memory'}; then try again.",
        )
        return
    yield CheckRow(subject="GPU", found=name)
    yield _memory(found.device, found.holders)
    yield CheckRow(
        subject="GPU context",
        found=f"{format_bytes(found.device.context_bytes)}, and {format_bytes(found.device.workspace_bytes)} for "
        "libraries' workspaces",
        source="measured",
    )
    yield from _rates(found.device, found.listed)


def _memory(device: Device, holders: tuple[Holder, ...]) -> CheckRow:
    held = device.total_bytes - device.usable_bytes
    is_held = held > HELD_FRACTION * device.total_bytes
    who = _holders(holders) or "The driver does not say who holds the rest; nvidia-smi may"
    return CheckRow(
        subject="GPU memory",
        found=f"{format_bytes(device.usable_bytes)} usable of {format_bytes(device.total_bytes)}",
        state="attention" if is_held else "ok",
        advice=f"{who}." if is_held else "",
    )


def _holders(holders: Iterable[Holder]) -> str:
    """Who holds the GPU's memory, and what to do about it."""
    named = [_holder(holder) for holder in holders]
    return f"End what you do not need: {', '.join(named)}" if named else ""


def _holder(holder: Holder) -> str:
    program = re.split(r"[/\\]", holder.name)[-1] if holder.name else "a process"
    held = f" holds {format_bytes(holder.num_bytes)}" if holder.num_bytes is not None else ""
    return f"{program} (pid {holder.pid}){held}"


def _rates(device: Device, listed: Device | None) -> Iterator[CheckRow]:
    usual = listed and listed.pinned_copy_bytes_per_second
    is_slow = bool(usual and device.pinned_copy_bytes_per_second < USUAL_LINK_FRACTION * usual)
    yield CheckRow(
        subject="copies, pinned",
        found=_rate(device.pinned_copy_bytes_per_second),
        state="attention" if is_slow else "ok",
        advice=f"Usual for this card is {_rate(usual)}: is it in a slot with all its lanes? nvidia-smi -q, under "
        "GPU Link Info, says."
        if is_slow and usual
        else "",
        source="measured",
    )
    yield CheckRow(
        subject="copies, pageable",
        found=f"{_rate(device.pageable_copy_bytes_per_second)}, and back {_rate(device.readback_bytes_per_second)}",
        source="measured",
    )
    is_alone = device.overlap_fraction < LEAST_OVERLAP_FRACTION
    yield CheckRow(
        subject="copies at work",
        found=f"{device.overlap_fraction:.0%} of the pinned rate while the GPU computes",
        state="attention" if is_alone else "ok",
        advice="Streamed weights come that much slower: prefer budgets that keep more of them."
        if is_alone
        else "",
        source="measured",
    )
    yield _arithmetic(device, listed)
    yield CheckRow(subject="GPU memory rate", found=_rate(device.memory_bytes_per_second), source="measured")


def _arithmetic(device: Device, listed: Device | None) -> CheckRow:
    rates = device.flops_per_second
    usual = max(listed.flops_per_second.values()) if listed else 0.0
    is_slow = max(rates.values()) < USUAL_ARITHMETIC_FRACTION * usual
    return CheckRow(
        subject="arithmetic",
        found=", ".join(f"{dtype} {rate / 1e12:.3g}" for dtype, rate in rates.items()) + " TFLOP/s",
        state="attention" if is_slow else "ok",
        advice=f"Its data sheet says {usual / 1e12:.3g}: is something else at work on it, or its power limited?"
        if is_slow
        else "",
        source="measured",
    )


def _rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:.3g} GB/s"


# ---------------------------------------------------------------------------------------------------
# Host


def _host(machine: Machine) -> Iterator[CheckRow]:
    host = machine.host
    yield _host_memory(host)
    accelerator = machine.accelerator
    is_nvidia = accelerator is None or machine.driver is not None
    if host.locked_limit_bytes is not None and not is_nvidia:
        yield CheckRow(
            subject="locked memory",
            found=f"at most {format_bytes(host.locked_limit_bytes)} (ulimit -l)",
            state="attention",
            advice="Weights that leave the GPU are page-locked on the host: ulimit -l unlimited.",
        )


def _host_memory(host: Host) -> CheckRow:
    subject = "host memory"
    if host.total_bytes is None or host.available_bytes is None:
        return CheckRow(subject=subject, found="unknown on this system")
    found = f"{format_bytes(host.available_bytes)} available of {format_bytes(host.total_bytes)}"
    available_bytes = host.available_bytes
    limit_bytes = host.control_group_limit_bytes
    if limit_bytes is not None and limit_bytes < host.total_bytes:
        found += f"; this process's group may use {format_bytes(limit_bytes)}"
        available_bytes = min(available_bytes, limit_bytes)
    is_little = available_bytes < LEAST_HOST_BYTES
    return CheckRow(
        subject=subject,
        found=found,
        state="attention" if is_little else "ok",
        advice="Weights that leave the GPU stay here, page-locked: SDXL's take 6.5 GiB, FLUX.1's 31.4 GiB."
        if is_little
        else "",
    )


# ---------------------------------------------------------------------------------------------------
# Text and JSON


def check_report(rows: tuple[CheckRow, ...]) -> Group:
    """The verdict, then a line for each fact, with what to do under it."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("what", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("found, and what to do")
    for row in rows:
        found = row.found if row.source is None else f"{row.found}, {row.source}"
        advice = ("\n" + row.advice, "italic") if row.advice else ""
        table.add_row(row.subject, Text(row.state, style=STYLES[row.state]), Text.assemble(found, advice))
    return Group(_verdict(rows), "", table)


def _verdict(rows: tuple[CheckRow, ...]) -> Text:
    missing = [row.subject for row in rows if row.state == "missing"]
    heeded = [row.subject for row in rows if row.state == "attention"]
    more = f" Deserves attention: {', '.join(heeded)}." if heeded else ""
    if missing:
        return Text.assemble(
            ("Not ready: ", STYLES["missing"]),
            f"autotune cannot work on this machine. Missing: {', '.join(missing)}.{more}",
        )
    return Text.assemble(("Ready: ", STYLES["ok"]), f"autotune works on this machine.{more}")


def check_json(machine: Machine, rows: tuple[CheckRow, ...]) -> str:
    """One object: `ready`, the checks, and the facts they rest on."""
    return object_json(ready=is_ready(rows), checks=rows, machine=machine)
