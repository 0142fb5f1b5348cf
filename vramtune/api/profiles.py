"""The public functions for who has a profile, from `profile` or `price` or a file; they need neither torch nor diffusers."""

from collections.abc import Sequence
from pathlib import Path

from vramtune.api.arguments import expect, permission_names
from vramtune.api.progress import counting_bar
from vramtune.schema import Comparison, Frontier, Measurement, Plan, Profile, Timeline, checked_path
from vramtune.tuned import write_report
from vramtune.tuner import frontier as tuner_frontier
from vramtune.tuner import search, simulate
from vramtune.tuner.comparison import compare_modes
from vramtune.units import budget_bytes, host_bytes


def plan(
    profile: Profile,
    vram_gb: float,
    *,
    ram_gb: float | None = None,
    lock_gb: float | None = None,
    allow: str | Sequence[str] = (),
) -> Plan:
    """Find the fastest plan that keeps everything the process holds on the GPU within a budget.

    Args:
        profile: What a call costs.
        vram_gb: Budget in GiB.
        ram_gb: Budget in GiB for what the weights take of the host's memory. Left out, it is what was free where the profile
            was made; for a GPU that was named, no limit.
        lock_gb: Budget in GiB for what of that is page-locked. Left out, as for `ram_gb`: a share of the host's memory.
        allow: Names of permissions to change the output ("vae_tiling", "fp8_weights").

    Returns:
        Which weights are on the GPU in each stage, what that is predicted to cost, and why.

    Raises:
        UsageError: The budget is not a positive number or exceeds the card.
        BudgetError: Nothing fits; it carries the smallest budget that would.

    Example:
        >>> vramtune.plan(costs, 8).save("plan.json")
    """
    expect(Profile, profile)
    return search.choose_plan(
        profile,
        budget_bytes(vram_gb),
        ram_bytes=host_bytes(ram_gb, name="ram_gb"),
        lock_bytes=host_bytes(lock_gb, name="lock_gb"),
        allow=permission_names(allow),
    )


def compare(
    profile: Profile, vram_gb: float, *, ram_gb: float | None = None, allow: str | Sequence[str] = ()
) -> Comparison:
    """Put the stock diffusers modes, the plan and the bound side by side, under one budget, all predicted.

    The stock modes are predicted under the permissions that the plan uses: diffusers has a method for each.

    Args:
        profile: What a call costs.
        vram_gb: Budget in GiB.
        ram_gb: Budget in GiB for what the weights take of the host's memory, as in `plan`.
        allow: Names of permissions to change the output ("vae_tiling", "fp8_weights").

    Returns:
        Peak, seconds and bytes copied in each mode; its `plan` is None where nothing fits.

    Raises:
        UsageError: The budget is not a positive number or exceeds the card.

    Example:
        >>> vramtune.compare(costs, 8).plot()
    """
    expect(Profile, profile)
    return compare_modes(
        profile, budget_bytes(vram_gb), ram_bytes=host_bytes(ram_gb, name="ram_gb"), allow=permission_names(allow)
    )


def frontier(profile: Profile, *, allow: str | Sequence[str] = (), progress: bool = True) -> Frontier:
    """Trace latency against VRAM: plans from the smallest budget that works to where more buys nothing.

    Args:
        profile: What a call costs.
        allow: Names of permissions to change the output ("vae_tiling", "fp8_weights").
        progress: Whether a bar on standard error says what is planned.

    Returns:
        The fastest plan at each budget, and the stock modes at what they need.

    Raises:
        BudgetError: The card is too small for any plan.

    Example:
        >>> vramtune.frontier(costs).to_frame()
    """
    expect(Profile, profile)
    names = permission_names(allow)
    with counting_bar("budgets", is_shown=progress) as show:
        return tuner_frontier.trace_frontier(profile, allow=names, show=show)


def timeline(profile: Profile, plan: Plan) -> Timeline:
    """Simulate a steady call of a plan: copy by copy, and who holds the GPU's memory when.

    Args:
        profile: What a call costs.
        plan: A plan made from it.

    Returns:
        When each engine is busy with which weight group, and the memory levels.

    Raises:
        UsageError: The plan was made for other weights or stages.

    Example:
        >>> vramtune.timeline(costs, chosen).plot_memory()
    """
    expect(Profile, profile)
    expect(Plan, plan)
    return simulate.timeline(profile, plan)


def report(profile: Profile, plan: Plan, path: str | Path, *, measured: Measurement | None = None) -> None:
    """Write one self-contained HTML page: the verdict, why, the stock modes, the call's timeline, the tables.

    Args:
        profile: What a call costs.
        plan: A plan made from it.
        path: File to write; it is replaced.
        measured: A measured call to show beside the prediction.

    Raises:
        UsageError: The plan was made for other weights or stages.
        FileError: The file cannot be written.

    Example:
        >>> vramtune.report(costs, chosen, "report.html")
    """
    expect(Profile, profile)
    expect(Plan, plan)
    if measured is not None:
        expect(Measurement, measured)
    checked_path(path)
    write_report(profile, plan, path, measurement=measured)
