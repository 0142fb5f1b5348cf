"""The stock modes, the plan and the bound side by side, under one budget."""

from vramtune.errors import BudgetError
from vramtune.schema import Comparison, Plan, Profile
from vramtune.tuner.budget import Budget
from vramtune.tuner.search import choose_plan
from vramtune.tuner.stock_modes import stock_modes


def compare_modes(
    profile: Profile, asked_bytes: int, *, ram_bytes: int | None = None, allow: tuple[str, ...] = ()
) -> Comparison:
    """The stock modes, the plan where one fits, and the bound, under one budget."""
    try:
        plan = choose_plan(profile, asked_bytes, ram_bytes=ram_bytes, allow=allow)
    except BudgetError:
        return compare_without_plan(profile, asked_bytes, ram_bytes=ram_bytes, allow=allow)
    return compare_plan(profile, plan)


def compare_without_plan(
    profile: Profile, asked_bytes: int, *, ram_bytes: int | None = None, allow: tuple[str, ...] = ()
) -> Comparison:
    """The stock modes under a budget that no plan fits, with all that was allowed."""
    budget = Budget.on(profile.device, asked_bytes, ram_bytes=ram_bytes)
    permissions = next((v.permissions for v in profile.variants if {*v.permissions} == {*allow}), ())
    return _comparison(profile, budget, None, permissions)


def compare_plan(profile: Profile, plan: Plan) -> Comparison:
    """The stock modes beside a plan that is there, in its budget and under the permissions that it uses."""
    return _comparison(profile, Budget.of(plan), plan, plan.permissions)


def _comparison(profile: Profile, budget: Budget, plan: Plan | None, permissions: tuple[str, ...]) -> Comparison:
    return Comparison(
        pipeline_class=profile.pipeline_class,
        workload=profile.workload,
        device=profile.device,
        asked_bytes=budget.asked_bytes,
        budget_bytes=budget.limit_bytes,
        plan=plan,
        stock=stock_modes(profile, budget.limit_bytes, ram_bytes=budget.ram_bytes, permissions=permissions),
    )
