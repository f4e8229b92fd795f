"""A decision in plain words. Every number in it comes from the stored record."""

from __future__ import annotations

import msgspec

from models.fairness.records import Header
from models.fairness.rules import SECOND, Candidate, Exclusion, is_busy, weighted_score
from models.policies.rules import RankingName

_WHY_NOT = {
    Exclusion.MISSING_SKILL: "lacked a required skill",
    Exclusion.WRONG_VEHICLE: "had another kind of vehicle",
    Exclusion.REJECTED: "had rejected this work",
    Exclusion.ALREADY_OFFERED: "had been asked in this round",
    Exclusion.LAPSE_PAUSE: "had let this work lapse and were not due to be asked again",
    Exclusion.HAS_OFFER: "were answering another offer",
    Exclusion.BUSY: "were busy",
    Exclusion.SILENT: "had not been heard from",
    Exclusion.OUT_OF_RADIUS: "were too far away",
}


class Factor(msgspec.Struct, frozen=True):
    """One value that the ranking read, as stored and as a sentence."""

    name: str
    value: int | str | None
    text: str


class ExcludedCount(msgspec.Struct, frozen=True):
    reason: str
    count: int


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why this driver. `position` counts from 1 among the eligible."""

    summary: str
    position: int | None
    candidates_considered: int
    factors: list[Factor]
    excluded: list[ExcludedCount]
    policy_version: int | None
    rule_version: int | None


def duration(seconds: int) -> str:
    """`3 h 12 min`, `4 min`, `25 s`."""
    if seconds < 60:
        return f"{seconds} s"
    minutes = seconds // 60
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} days"


def distance(metres: int) -> str:
    return f"{metres} m" if metres < 1000 else f"{metres / 1000:.1f} km"


def named_by_a_person(mode: str) -> Explanation:
    """For offers that no rule made."""
    what = "assigned to this driver directly" if mode == "force" else "offered to this driver by name"
    return Explanation(
        summary=f"A dispatcher {what}; no ranking was made.",
        position=None,
        candidates_considered=0,
        factors=[],
        excluded=[],
        policy_version=None,
        rule_version=None,
    )


def explain(header: Header, candidates: list[Candidate], driver_id: str) -> Explanation:
    """Why `driver_id` got the offer that this decision made. Raises ValueError when the record does not rank them."""
    ranked = [candidates[i] for i in header.order]
    position = next((i for i, c in enumerate(ranked) if c.driver_id == driver_id), None)
    if position is None:
        raise ValueError("the decision does not rank this driver")
    chosen = ranked[position]
    counts: dict[Exclusion, int] = {}
    nearer_busy = 0
    for i, reason in header.excluded:
        counts[reason] = counts.get(reason, 0) + 1
        other = candidates[i]
        if (
            reason in (Exclusion.BUSY, Exclusion.HAS_OFFER)
            and other.distance_m is not None
            and chosen.distance_m is not None
            and other.distance_m < chosen.distance_m
        ):
            nearer_busy += 1
    factors = _factors(header, chosen)
    place = f"ranked {position + 1} of {len(ranked)} eligible" if len(ranked) > 1 else "the only one eligible"
    parts = [factors[0].text, place]
    if header.action == "broadcast":
        parts.insert(0, f"offered to the {header.chosen} best-ranked drivers at once")
    if header.action == "auto":
        parts.insert(0, "assigned after nobody took the broadcast in time")
    if nearer_busy:
        drivers = "1 nearer driver was" if nearer_busy == 1 else f"{nearer_busy} nearer drivers were"
        parts.append(f"{drivers} busy")
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    others = [f"{count} {_why_not(reason, count)}" for reason, count in ordered]
    if others:
        parts.append("of the others on duty, " + ", ".join(others))
    return Explanation(
        summary=_sentence("; ".join(parts)),
        position=position + 1,
        candidates_considered=len(candidates),
        factors=factors,
        excluded=[ExcludedCount(reason.value, count) for reason, count in counts.items()],
        policy_version=header.policy_version,
        rule_version=header.rule_version,
    )


def _why_not(reason: Exclusion, count: int) -> str:
    return _WHY_NOT[reason] if count > 1 else _WHY_NOT[reason].replace("were", "was")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _factors(header: Header, c: Candidate) -> list[Factor]:
    """The values that ranked this driver, the deciding one first."""
    in_line = _in_line(header, c)
    away = (
        Factor("distance_m", c.distance_m, f"{distance(c.distance_m)} away")
        if c.distance_m is not None
        else Factor("distance_m", None, "distance unknown")
    )
    asked = (
        Factor("last_offered_s", None, "never asked before")
        if c.last_offered_at is None
        else _ago("last_offered_s", header.now - c.last_offered_at, "last asked", "ago")
    )
    load = Factor(
        "active_count",
        c.active_count,
        "holds no work" if c.active_count == 0 and not c.staff_busy else f"holds {c.active_count} already",
    )
    rest: list[Factor] = [asked, load]
    if header.policy.ranking is RankingName.NEAREST:
        ordered = [away, in_line]
    elif header.policy.ranking is RankingName.WEIGHTED:
        score = weighted_score(header.policy, header.now, c)
        weights = header.policy.weights
        text = f"score {score} = {weights.fairness} x seconds in line - {weights.distance} x metres away"
        ordered = [Factor("score", score, text), in_line, away]
    else:
        ordered = [in_line, away]
    if is_busy(header.policy, c):
        ordered.insert(0, Factor("busy_fallback", 1, "nobody was free, so busy drivers were asked"))
    return ordered + rest


def _in_line(header: Header, c: Candidate) -> Factor:
    if c.queue_at is None:
        return Factor("waited_s", None, "never assigned before")
    return _ago("waited_s", header.now - c.queue_at, "longest since last assignment:", "")


def _ago(name: str, micros: int, before: str, after: str) -> Factor:
    seconds = max(0, micros) // SECOND
    return Factor(name, seconds, f"{before} {duration(seconds)} {after}".strip())
