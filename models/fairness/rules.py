"""Who gets the next offer: eligibility and ranking as one pure function over recorded rows.

`choose(policy, work, now, candidates)` is all there is to it. A decision records its arguments, so anybody can call it
again and get the same order, forever. A changed rule gets a new RULE_VERSION and the old function stays in `RULES`.

Times are microseconds since 1970 (UTC), distances whole metres: integers, so that no rounding differs between machines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from models.policies.rules import RankingName

if TYPE_CHECKING:
    from models.policies.rules import Policy

SECOND = 1_000_000
#: Stands for an unknown distance in a weighted score: farther than any radius.
UNKNOWN_M = 20_037_508
#: Stands for "never yet" in a weighted score: ten years in line, and more than the heaviest weight can take off for
#: distance, since this time does not grow: somebody far away would wait for their first turn for ever.
NEVER_S = 315_360_000 + 1_000 * UNKNOWN_M


class Exclusion(StrEnum):
    """Why a driver on duty could not be offered the work. In the order in which they are checked."""

    MISSING_SKILL = "missing_skill"
    WRONG_VEHICLE = "wrong_vehicle"
    REJECTED = "rejected"
    ALREADY_OFFERED = "already_offered"
    LAPSE_PAUSE = "lapse_pause"
    HAS_OFFER = "has_offer"
    BUSY = "busy"
    SILENT = "silent"
    OUT_OF_RADIUS = "out_of_radius"


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of the work order that the choice looks at."""

    work_order_id: str
    kind: str
    priority: int
    round: int
    required_skills: tuple[str, ...] = ()
    required_vehicle_type: str | None = None
    has_location: bool = False


class Candidate(msgspec.Struct, frozen=True, array_like=True):
    """One driver on duty, with every value that eligibility and ranking read. Encoded as an array: many are kept."""

    driver_id: str
    queue_at: int | None
    last_offered_at: int | None
    active_count: int = 0
    staff_busy: bool = False
    #: Answering an exclusive offer right now.
    has_offer: bool = False
    #: Those of the required skills that the driver holds.
    skills: tuple[str, ...] = ()
    vehicle_type: str | None = None
    already_offered: bool = False
    rejected: bool = False
    #: Offers of this very work order that the driver let lapse, and when the last one did.
    lapses: int = 0
    lapsed_at: int | None = None
    seen_at: int | None = None
    distance_m: int | None = None
    service_radius_m: int | None = None


class Choice(msgspec.Struct, frozen=True):
    """`order`: eligible drivers, best first. `excluded`: the others, each with the first reason that applies."""

    order: tuple[str, ...]
    excluded: tuple[tuple[str, Exclusion], ...]

    def reasons(self) -> dict[Exclusion, int]:
        """How many drivers each reason kept out, most frequent first."""
        counts: dict[Exclusion, int] = {}
        for _, reason in self.excluded:
            counts[reason] = counts.get(reason, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def lapse_ends_at(policy: Policy, candidate: Candidate) -> int | None:
    """Until when the driver is not asked again for this work: `lapse_pause_s`, doubling with every lapse."""
    if not candidate.lapses or candidate.lapsed_at is None:
        return None
    doublings: int = min(candidate.lapses - 1, 20)
    return candidate.lapsed_at + (policy.lapse_pause_s * SECOND << doublings)


def exclusion(policy: Policy, work: Work, now: int, c: Candidate) -> Exclusion | None:
    """Why this driver cannot be offered this work at `now`; None when they can."""
    if len(c.skills) < len(work.required_skills):
        return Exclusion.MISSING_SKILL
    if work.required_vehicle_type is not None and c.vehicle_type != work.required_vehicle_type:
        return Exclusion.WRONG_VEHICLE
    if c.rejected and policy.reject_memory:
        return Exclusion.REJECTED
    if c.already_offered:
        return Exclusion.ALREADY_OFFERED
    pause = lapse_ends_at(policy, c)
    if pause is not None and now < pause:
        return Exclusion.LAPSE_PAUSE
    if c.has_offer:
        return Exclusion.HAS_OFFER
    if c.active_count >= policy.most_held or (c.staff_busy and not policy.busy_fallback):
        return Exclusion.BUSY
    if policy.require_heartbeat and (c.seen_at is None or now - c.seen_at > policy.heartbeat_max_age_s * SECOND):
        return Exclusion.SILENT
    if work.has_location and policy.radius_km is not None:
        reach = int(policy.radius_km * 1000)
        if c.service_radius_m is not None:
            reach = min(reach, c.service_radius_m)
        if c.distance_m is None or c.distance_m > reach:
            return Exclusion.OUT_OF_RADIUS
    return None


Key = tuple[int | str, ...]


def is_busy(policy: Policy, c: Candidate) -> bool:
    """Holds work up to capacity, or staff say so: asked only when nobody is free."""
    return c.staff_busy or c.active_count >= policy.capacity


def _in_line(c: Candidate) -> Key:
    """The fairness order proper: never assigned, then the longest in line, then the longest not asked, then id."""
    return (
        0 if c.queue_at is None else 1,
        c.queue_at or 0,
        0 if c.last_offered_at is None else 1,
        c.last_offered_at or 0,
        c.driver_id,
    )


def weighted_score(policy: Policy, now: int, c: Candidate) -> int:
    """weights.fairness * seconds in line - weights.distance * metres away. Time in line grows without bound and an
    assignment resets it, so with a fairness weight above 0 everybody's turn comes."""
    waited_s = NEVER_S if c.queue_at is None else max(0, now - c.queue_at) // SECOND
    away_m = UNKNOWN_M if c.distance_m is None else c.distance_m
    return policy.weights.fairness * waited_s - policy.weights.distance * away_m


def ranking_key(policy: Policy, now: int) -> Callable[[Candidate], Key]:
    """The sort key of the policy's ranking. Each ends in the driver's id, so the order is total."""
    if policy.ranking is RankingName.NEAREST:
        return lambda c: (
            is_busy(policy, c),
            UNKNOWN_M if c.distance_m is None else c.distance_m,
            *_in_line(c),
        )
    if policy.ranking is RankingName.WEIGHTED:
        return lambda c: (is_busy(policy, c), -weighted_score(policy, now, c), *_in_line(c))
    return lambda c: (is_busy(policy, c), *_in_line(c))


def choose_v1(policy: Policy, work: Work, now: int, candidates: Sequence[Candidate]) -> Choice:
    """Who may be offered the work, best first, and why the others may not."""
    eligible: list[Candidate] = []
    excluded: list[tuple[str, Exclusion]] = []
    for candidate in candidates:
        reason = exclusion(policy, work, now, candidate)
        if reason is None:
            eligible.append(candidate)
        else:
            excluded.append((candidate.driver_id, reason))
    eligible.sort(key=ranking_key(policy, now))
    return Choice(tuple(c.driver_id for c in eligible), tuple(excluded))


#: Every rule ever shipped, by version: a recorded decision names the one that made it.
RULES: dict[int, Callable[[Policy, Work, int, Sequence[Candidate]], Choice]] = {1: choose_v1}
RULE_VERSION = 1


def choose(policy: Policy, work: Work, now: int, candidates: Sequence[Candidate]) -> Choice:
    """The rule in force."""
    return RULES[RULE_VERSION](policy, work, now, candidates)
