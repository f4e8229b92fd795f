"""The lane: decision n gives the first servable waiting work order its best-ranked eligible driver, on the state
committed when n held the lane.

One pair per transaction. Choosing, and only choosing, is serialized per organization by locking its lane, because
`SKIP LOCKED` picks distinct drivers but not the fairest ones.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import insert, text
from sqlalchemy.engine import Row

from models.audit.commands import record
from models.drivers.locking import lock_driver
from models.fairness.candidates import candidate_of, facts_of, first_servable, micros, read_candidates
from models.fairness.records import Header, make_record, outcome
from models.fairness.rules import RULE_VERSION, Candidate, Choice, Exclusion, Work, choose, lapse_ends_at
from models.fairness.tables import decisions
from models.kit.database import Session
from models.kit.ids import new_id
from models.notifications.commands import notify
from models.notifications.rules import Event
from models.offers.commands import assign, close_pending, insert_offers, next_sequence, notify_driver, offer_row
from models.offers.rules import OfferMode, OfferReason
from models.policies.queries import CurrentPolicy, current_policies
from models.policies.rules import Mode
from models.work.locking import lock_work_order
from models.work.rules import WorkKind
from models.work.wakes import Wake, raise_wake

_LOCK_LANE = text("""
WITH lane AS MATERIALIZED (
    SELECT last_number, last_hash FROM dispatch_lanes WHERE organization_id = :organization_id FOR NO KEY UPDATE
)
SELECT lane.*, clock_timestamp() AS now FROM lane
""")

_DRIVERS = text("SELECT driver_id, queue_at FROM driver_dispatch WHERE driver_id = ANY(:driver_ids)")

_ASKED = text("""
UPDATE driver_dispatch SET last_offered_at = :at, state_version = state_version + 1 WHERE driver_id = :driver_id
""")

_OFFERED = text("""
UPDATE work_orders SET match_from = :match_from, broadcast_until = :broadcast_until, next_round_at = NULL,
    nobody_reasons = NULL, policy_id = :policy_id, offered_at = coalesce(offered_at, :at), updated_at = :at
WHERE id = :id
""")

_NOBODY = text("""
UPDATE work_orders SET nobody_reasons = :reasons,
    next_round_at = CASE WHEN CAST(:next_round_at AS timestamptz) IS NULL THEN NULL
        ELSE coalesce(next_round_at, :next_round_at) END
WHERE id = :id
""")

_COUNT = text(
    "UPDATE dispatch_lanes SET last_number = :number, last_hash = :hash WHERE organization_id = :organization_id"
)

_STILL_WAITING = text(
    "SELECT match_from IS NOT NULL AND match_from <= clock_timestamp() FROM work_orders WHERE id = :id"
)

_ORDER_EXPIRY = text("SELECT expires_at FROM orders WHERE work_order_id = :id")

_POLICY_VERSION = text("SELECT version FROM dispatch_policies WHERE id = :id")

#: How often a driver chosen a moment ago may have moved on before the lane is given up for another try.
RERANKS = 8


class Matched(msgspec.Struct, frozen=True):
    """The work order that the lane served."""

    work_order_id: UUID


class LaneBusy(Exception):
    """The chosen drivers kept changing under us; try again in a new transaction."""


async def match_next(session: Session, organization_id: UUID, *, own: UUID) -> Matched | None:
    """Serve the first waiting work order that somebody can take; None when there is no such pair.

    `own` is the caller's work order: when nothing matches, why nobody can take it is looked up and recorded. Another's
    is woken. Raises LaneBusy.
    """
    lane = await session.row(_LOCK_LANE, {"organization_id": organization_id})
    assert lane is not None, "every organization has a lane"
    policies = await current_policies(session, organization_id)
    passed: list[UUID] = []
    while (head := await first_servable(session, organization_id, policies=policies, passed=passed)) is not None:
        if await _serve(session, lane, head, policies, own=own):
            return Matched(head)
        passed.append(head)
    if await session.value(_STILL_WAITING, {"id": own}):
        await _serve(session, lane, own, policies, own=own, record_nobody=True)
    return None


async def _serve(
    session: Session,
    lane: Row[Any],
    work_order_id: UUID,
    policies: dict[WorkKind, CurrentPolicy],
    *,
    own: UUID,
    record_nobody: bool = False,
) -> bool:
    """Rank this work order's candidates and offer it. False when nobody is eligible or it no longer waits."""
    work_order = await lock_work_order(session, work_order_id)
    if work_order.match_from is None or work_order.match_from > work_order.now:
        return False
    current = policies[WorkKind(work_order.kind)]
    for _ in range(RERANKS):
        rows = await read_candidates(session, work_order)
        candidates = [candidate_of(row) for row in rows]
        work = facts_of(work_order)
        now = micros(work_order.now)
        choice = choose(current.policy, work, now, candidates)
        if not choice.order:
            if record_nobody:
                await _record_nobody(session, lane, work_order, current, work, now, candidates, choice)
            return False
        if current.policy.mode is Mode.BROADCAST and work_order.broadcast_until is None:
            await _broadcast(session, lane, work_order, current, work, now, rows, candidates, choice)
            break
        best = next(row for row in rows if str(row.driver_id) == choice.order[0])
        driver = await lock_driver(session, best.driver_id)
        if driver.state_version == best.state_version:
            automatic = work_order.broadcast_until is not None
            make = _auto_assign if automatic else _offer
            await make(session, lane, work_order, current, work, now, driver, best.user_id, candidates, choice)
            break
        # Somebody changed the driver while we waited for the lock. Their new state is committed: rank again.
    else:
        raise LaneBusy
    if work_order.id != own:
        raise_wake(session, work_order.id, work_order.organization_id, Wake.DRIVER_AVAILABLE)
    return True


async def _decide(
    session: Session,
    lane: Row[Any],
    work_order: Row[Any],
    current: CurrentPolicy,
    work: Work,
    now: int,
    candidates: list[Candidate],
    choice: Choice,
    *,
    action: str,
    chosen: int,
) -> UUID:
    """Write decision number n of the lane, chained to n - 1."""
    number = lane.last_number + 1
    order, excluded = outcome(choice, candidates)
    made = make_record(
        Header(
            number=number,
            organization_id=str(work_order.organization_id),
            rule_version=RULE_VERSION,
            policy_id=str(current.id),
            policy_version=await session.value(_POLICY_VERSION, {"id": current.id}),
            policy=current.policy,
            now=now,
            work=work,
            action=action,
            chosen=chosen,
            order=order,
            excluded=excluded,
        ),
        candidates,
        lane.last_hash,
    )
    decision_id = new_id()
    await session.run(
        insert(decisions),
        {
            "id": decision_id,
            "organization_id": work_order.organization_id,
            "number": number,
            "work_order_id": work_order.id,
            "driver_id": UUID(choice.order[0]) if chosen else None,
            "policy_id": current.id,
            "rule_version": RULE_VERSION,
            "decided_at": work_order.now,
            "header": made.header,
            "candidates": made.candidates,
            "salts": made.salts,
            "body_hash": made.body_hash,
            "previous_hash": lane.last_hash,
            "hash": made.hash,
            "summary": summary_of(choice),
        },
    )
    await session.run(_COUNT, {"organization_id": work_order.organization_id, "number": number, "hash": made.hash})
    return decision_id


def summary_of(choice: Choice) -> str:
    """`busy:4,silent:1`; `nobody_on_duty` when there was nobody to exclude."""
    reasons = choice.reasons()
    if not reasons and not choice.order:
        return "nobody_on_duty"
    return ",".join(f"{reason.value}:{count}" for reason, count in reasons.items())


async def _offer(
    session: Session, lane: Row[Any], work_order: Row[Any], current: CurrentPolicy, work: Work, now: int,
    driver: Row[Any], user_id: UUID, candidates: list[Candidate], choice: Choice,
) -> None:  # fmt: skip
    """One driver, exclusively."""
    decision_id = await _decide(
        session, lane, work_order, current, work, now, candidates, choice, action="offer", chosen=1
    )
    at = driver.now
    row = offer_row(
        work_order, driver, policy_id=current.id, policy=current.policy, mode=OfferMode.SEQUENTIAL, exclusive=True,
        round_=work_order.round, sequence=await next_sequence(session, work_order.id), at=at, decision_id=decision_id,
        latest=await _expiry_of(session, work_order),
    )  # fmt: skip
    await insert_offers(session, [row])
    await session.run(_ASKED, {"driver_id": driver.driver_id, "at": at})
    await _note_offered(session, work_order, current, row, user_id, match_from=None, broadcast_until=None)


async def _broadcast(
    session: Session, lane: Row[Any], work_order: Row[Any], current: CurrentPolicy, work: Work, now: int,
    rows: list[Row[Any]], candidates: list[Candidate], choice: Choice,
) -> None:  # fmt: skip
    """The best-ranked drivers at once; the first accept wins. Nobody's place in line moves."""
    policy = current.policy
    chosen = choice.order[: policy.broadcast_limit]
    decision_id = await _decide(
        session, lane, work_order, current, work, now, candidates, choice, action="broadcast", chosen=len(chosen)
    )
    at = work_order.now
    latest = await _expiry_of(session, work_order)
    drivers = {str(d.driver_id): d for d in await session.rows(_DRIVERS, {"driver_ids": [UUID(i) for i in chosen]})}
    users = {str(row.driver_id): row.user_id for row in rows}
    sequence = await next_sequence(session, work_order.id)
    made = [
        offer_row(
            work_order, drivers[driver_id], policy_id=current.id, policy=policy, mode=OfferMode.BROADCAST,
            exclusive=False, round_=work_order.round, sequence=sequence + i, at=at, decision_id=decision_id,
            latest=latest,
        )
        for i, driver_id in enumerate(chosen)
    ]  # fmt: skip
    await insert_offers(session, made)
    until = at + timedelta(seconds=policy.broadcast_window_s)
    for i, row in enumerate(made):
        await _note_offered(
            session, work_order, current, row, users[str(row["driver_id"])],
            match_from=until if policy.auto_assign else None, broadcast_until=until, first=i == 0,
        )  # fmt: skip


async def _auto_assign(
    session: Session, lane: Row[Any], work_order: Row[Any], current: CurrentPolicy, work: Work, now: int,
    driver: Row[Any], user_id: UUID, candidates: list[Candidate], choice: Choice,
) -> None:  # fmt: skip
    """The broadcast's window ended untaken: the best-ranked driver is assigned, without being asked."""
    decision_id = await _decide(
        session, lane, work_order, current, work, now, candidates, choice, action="auto", chosen=1
    )
    at = driver.now
    await close_pending(session, work_order, OfferReason.SUPERSEDED, at=at)
    # The driver may have been asked in this round already, and an offer is made once a round.
    round_ = work_order.round + 1
    row = offer_row(
        work_order, driver, policy_id=current.id, policy=current.policy, mode=OfferMode.AUTO, exclusive=False,
        round_=round_, sequence=await next_sequence(session, work_order.id), at=at, decision_id=decision_id,
    ) | {"status": "accepted", "responded_at": at}  # fmt: skip
    await insert_offers(session, [row])
    record(
        session, "OFFER_MADE", organization_id=work_order.organization_id, entity_type="offer", entity_id=row["id"],
        work_order_id=work_order.id, driver_id=driver.driver_id, mode="auto", decision_number=lane.last_number + 1,
    )  # fmt: skip
    await assign(
        session, work_order, driver.driver_id, offer_id=row["id"], policy=current.policy, at=at, offered_at=at,
        round_=round_,
    )  # fmt: skip
    await notify_driver(session, Event.ASSIGNED, work_order, driver.driver_id, at=at, offer_id=row["id"])


async def _note_offered(
    session: Session, work_order: Row[Any], current: CurrentPolicy, row: dict[str, Any], user_id: UUID, *,
    match_from: Any, broadcast_until: Any, first: bool = True,
) -> None:  # fmt: skip
    if first:
        await session.run(
            _OFFERED,
            {"id": work_order.id, "at": row["offered_at"], "match_from": match_from,
             "broadcast_until": broadcast_until, "policy_id": current.id},
        )  # fmt: skip
    record(
        session, "OFFER_MADE", organization_id=work_order.organization_id, entity_type="offer", entity_id=row["id"],
        work_order_id=work_order.id, driver_id=row["driver_id"], mode=row["mode"],
    )  # fmt: skip
    notify(
        session, Event.OFFER_MADE, organization_id=work_order.organization_id, user_id=user_id, at=row["offered_at"],
        work_order_id=work_order.id, offer_id=row["id"],
    )  # fmt: skip


async def _record_nobody(
    session: Session, lane: Row[Any], work_order: Row[Any], current: CurrentPolicy, work: Work, now: int,
    candidates: list[Candidate], choice: Choice,
) -> None:  # fmt: skip
    """Nobody is eligible. Recorded when the reasons change; a round in which everybody was asked is over."""
    reasons, summary = choice.reasons(), summary_of(choice)
    if _names(summary) != _names(work_order.nobody_reasons or ""):
        await _decide(session, lane, work_order, current, work, now, candidates, choice, action="nobody", chosen=0)
    again_at: datetime | None = None
    if Exclusion.ALREADY_OFFERED in reasons:
        again_at = work_order.now + timedelta(seconds=current.policy.recheck_s)
    elif Exclusion.LAPSE_PAUSE in reasons:
        paused = {driver_id for driver_id, reason in choice.excluded if reason is Exclusion.LAPSE_PAUSE}
        ends = [lapse_ends_at(current.policy, c) or now for c in candidates if c.driver_id in paused]
        again_at = work_order.now + timedelta(microseconds=min(ends) - now)
    if current.policy.max_rounds is not None and work_order.round >= current.policy.max_rounds:
        again_at = None
    await session.run(_NOBODY, {"id": work_order.id, "reasons": summary, "next_round_at": again_at})


def _names(summary: str) -> set[str]:
    return {part.partition(":")[0] for part in summary.split(",")}


async def _expiry_of(session: Session, work_order: Row[Any]) -> Any:
    """An order is offered no longer than it may be taken."""
    if work_order.kind != WorkKind.ORDER:
        return None
    return await session.value(_ORDER_EXPIRY, {"id": work_order.id})
