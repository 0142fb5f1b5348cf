"""What weights may have of the device: as planned, or less where out of memory taught that something else needs it."""

import logging
from collections.abc import Collection, Mapping

import torch

from vramtune.layout import round_up, segment_bytes
from vramtune.offload.binding import Binding, BoundComponent
from vramtune.offload.fit import fit, fit_residents, held_bytes, planned_bytes, resident_bytes
from vramtune.schema import Plan

FIRST_CUT_FRACTION = 1 / 8
"""Share of a stage's weights that makes room after an out of memory that does not say what was asked for."""

logger = logging.getLogger(__name__)


class Shares:
    """The weights' share of the device in each stage, and between calls."""

    def __init__(self, binding: Binding, device: torch.device) -> None:
        self._binding, self._device = binding, device
        self.overrun_bytes = [0] * len(binding.plan.stages)
        """Bytes that each stage's weights have less than planned, as out-of-memory errors taught."""
        self._has_taken_back = False
        """Whether weights got back once what they had given up."""
        self._resident_limit_bytes = binding.plan.budget_bytes
        """Bytes that resident groups may have; fewer where out of memory taught that what no plan knows needs them."""

    def start_over(self, plan: Plan) -> None:
        """Begin with another plan, of which nothing was learnt yet; it is followed next."""
        self.overrun_bytes, self._has_taken_back = [0] * len(plan.stages), False

    def held_bytes(self, stage: int) -> int:
        """Bytes that weights and slots take in a stage as things are."""
        return held_bytes(self._binding.placements, stage)

    def resident_bytes(self) -> int:
        """Bytes of the groups that stay on the device between calls."""
        return resident_bytes(self._binding.placements)

    def give_up(self, stage: int, asked_bytes: int | None) -> None:
        """Have what was asked for in vain less in a stage, which is never less than what is missing; then twice as much."""
        held = self.held_bytes(stage)
        if asked_bytes is None:
            first = int(FIRST_CUT_FRACTION * held)
        else:
            first = segment_bytes(round_up(asked_bytes)) if self._device.type == "cuda" else asked_bytes
        wanted = max(2 * self.overrun_bytes[stage], first, 1)
        least = planned_bytes(self._binding.plan, stage) - held + wanted
        self.overrun_bytes[stage] = max(wanted, least)

    def halve_residents(self) -> None:
        """Have half as much between calls."""
        self._resident_limit_bytes = min(self.resident_bytes(), self._resident_limit_bytes) // 2

    def take_back(self, peak_bytes: Mapping[str, int], limit_bytes: int, others_bytes: int) -> bool:
        """Have what is planned again, once, where the last call's peaks by stage leave room for it; whether they do.

        What ran out of memory was a larger call, or another process had taken memory. Out of memory again teaches for good.
        """
        device, plan = self._device, self._binding.plan
        has_given_up = any(self.overrun_bytes) or self._resident_limit_bytes < plan.budget_bytes
        if not has_given_up or self._has_taken_back:
            return False
        free_bytes = torch.accelerator.get_memory_info(device)[0] + torch.accelerator.memory_reserved(device)
        limit_bytes = min(limit_bytes, free_bytes - others_bytes)
        for stage, planned in enumerate(plan.stages):
            more_bytes = planned_bytes(plan, stage) - self.held_bytes(stage)
            if peak_bytes.get(planned.name, limit_bytes) + max(more_bytes, 0) > limit_bytes:
                return False
        logger.debug("weights have what is planned for them again")
        self.overrun_bytes, self._has_taken_back = [0] * len(plan.stages), True
        self._resident_limit_bytes = plan.budget_bytes
        return True

    def fit(self, adopted: Collection[BoundComponent]) -> None:
        """Keep fewer groups where they take more than their share."""
        placements = self._binding.placements
        staying_bytes = sum(c.unplanned.num_bytes for c in adopted if c.is_excluded)
        for stage, planned in enumerate(self._binding.plan.stages):
            less_bytes = self.overrun_bytes[stage] + staying_bytes
            given_up = fit(placements, stage, planned_bytes(self._binding.plan, stage) - less_bytes)
            if given_up:
                logger.debug("stage %s: weights give up %d bytes", planned.name, given_up)
        if given_up := fit_residents(placements, self._resident_share_bytes(adopted)):
            logger.debug("resident weights give up %d bytes", given_up)

    def _resident_share_bytes(self, adopted: Collection[BoundComponent]) -> int:
        """Bytes that resident groups may have beside the largest component that came in and that no plan knows."""
        plan = self._binding.plan
        incoming = max((c.unplanned.num_bytes for c in adopted if c.came_in), default=0)
        share = max(planned_bytes(plan, stage) for stage in range(len(plan.stages)))
        return max(min(self._resident_limit_bytes, share - incoming), 0) if incoming else self._resident_limit_bytes
