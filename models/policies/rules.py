"""Dispatch policies: how an organization's work of one kind is offered."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

from models.work.rules import WorkKind


class Mode(StrEnum):
    SEQUENTIAL = "sequential"
    BROADCAST = "broadcast"
    MANUAL = "manual"


class RankingName(StrEnum):
    FAIR = "fair"
    NEAREST = "nearest"
    WEIGHTED = "weighted"


class OnTimeout(StrEnum):
    """What an unanswered offer brings besides its expiry."""

    OFF_DUTY = "off_duty"
    NEXT = "next"
    REMIND = "remind"


Seconds = Annotated[int, msgspec.Meta(ge=1, le=31_536_000)]
ShortSeconds = Annotated[int, msgspec.Meta(ge=1, le=86_400)]
Weight = Annotated[int, msgspec.Meta(ge=0, le=1_000)]


class Weights(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Points per second in line, and points lost per metre away, under `ranking: weighted`."""

    fairness: Weight = 1
    distance: Weight = 1


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every field of a dispatch policy; null means "none" or "unlimited"."""

    mode: Mode
    offer_ttl_s: ShortSeconds
    offer_ttl_max_s: ShortSeconds
    busy_fallback: bool = False
    require_heartbeat: bool = False
    heartbeat_max_age_s: ShortSeconds = 60
    radius_km: Annotated[float, msgspec.Meta(gt=0, le=20_000)] | None = None
    on_timeout: OnTimeout = OnTimeout.NEXT
    broadcast_window_s: ShortSeconds = 15
    broadcast_limit: Annotated[int, msgspec.Meta(ge=1, le=500)] = 50
    auto_assign: bool = False
    max_rounds: Annotated[int, msgspec.Meta(ge=1, le=1_000)] | None = None
    recheck_s: ShortSeconds = 30
    escalate_after_s: Seconds = 600
    lead_time_s: Annotated[int, msgspec.Meta(ge=0, le=31_536_000)] = 0
    nudge_after_s: Seconds | None = None
    late_after_s: Seconds | None = None
    ranking: RankingName = RankingName.FAIR
    weights: Weights = Weights()
    reject_memory: bool = True
    lapse_pause_s: ShortSeconds = 300
    capacity: Annotated[int, msgspec.Meta(ge=1, le=20)] = 1

    @property
    def most_held(self) -> int:
        """How much due work a driver may hold: the capacity, and one more where busy drivers may be asked."""
        return self.capacity + (1 if self.busy_fallback else 0)


def problems(policy: Policy) -> dict[str, list[str]]:
    """Field errors of settings that contradict each other; empty when they agree."""
    found: dict[str, list[str]] = {}
    if policy.offer_ttl_max_s < policy.offer_ttl_s:
        found["offer_ttl_max_s"] = ["must be at least offer_ttl_s"]
    if policy.late_after_s and policy.nudge_after_s and policy.late_after_s <= policy.nudge_after_s:
        found["late_after_s"] = ["must be later than nudge_after_s"]
    if policy.ranking is RankingName.WEIGHTED and policy.weights.fairness + policy.weights.distance == 0:
        found["weights"] = ["at least one weight must be above 0"]
    return found


DEFAULTS: dict[WorkKind, Policy] = {
    WorkKind.ENROLLMENT: Policy(
        mode=Mode.SEQUENTIAL,
        offer_ttl_s=300,
        offer_ttl_max_s=900,
        busy_fallback=True,
        on_timeout=OnTimeout.OFF_DUTY,
        escalate_after_s=600,
        lead_time_s=86_400,
    ),
    WorkKind.JOB: Policy(
        mode=Mode.SEQUENTIAL,
        offer_ttl_s=120,
        offer_ttl_max_s=300,
        require_heartbeat=True,
        radius_km=25,
        escalate_after_s=600,
        lead_time_s=3_600,
        nudge_after_s=600,
        late_after_s=1_800,
    ),
    WorkKind.ORDER: Policy(
        mode=Mode.BROADCAST,
        offer_ttl_s=120,
        offer_ttl_max_s=120,
        require_heartbeat=True,
        radius_km=10,
        auto_assign=True,
        broadcast_window_s=15,
        broadcast_limit=50,
        escalate_after_s=60,
        lead_time_s=900,
        nudge_after_s=300,
        late_after_s=900,
    ),
    WorkKind.ROUTE: Policy(
        mode=Mode.MANUAL,
        offer_ttl_s=900,
        # A reminder once, with as long again to answer; then the dispatchers hear of it.
        offer_ttl_max_s=1_800,
        on_timeout=OnTimeout.REMIND,
        escalate_after_s=900,
        lead_time_s=0,
    ),
}
#: An order that names no `expires_in_s` may be taken for so long.
ORDER_EXPIRES_S = 120
