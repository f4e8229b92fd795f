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
from sqlalchemy.engine import Row

from models.audit.commands import record
from models.drivers.locking import lock_driver
from models.fairness.candidates import candidate_of, facts_of, first_servable, micros, read_candidates
from models.fairness.records import Header, make_record, outcome
from models.fairness.rules import RULE_VERSION, Candidate, Choice, Exclusion, Work, choose, lapse_ends_at
from models.fairness.tables import decisions
from models.kit.database import Session
from models.kit.ids import new_id
from models.kit.outages import is_outage
from models.kit.sql import Sql
from models.notifications.commands import notify
from models.notifications.rules import Event
from models.offers.commands import assign, close_pending, insert_offers, notify_driver, offer_row
from models.offers.rules import OfferMode, OfferReason
from models.policies.queries import CurrentPolicy, current_policies
from models.policies.rules import Mode
from models.work.locking import lock_work_order
from models.work.rules import WorkKind
from models.work.wakes import Wake, raise_wake

_LOCK_LANE = Sql("""
WITH lane AS MATERIALIZED (
    SELECT last_number, last_hash FROM dispatch_lanes WHERE organization_id = :organization_id FOR NO KEY UPDATE
)
SELECT lane.*, clock_timestamp() AS now FROM lane
""")

_ASKED = Sql("""
UPDATE driver_dispatch SET last_offered_at = :at, state_version = state_version + 1 WHERE driver_id = :driver_id
""")

_OFFERED = Sql("""
UPDATE work_orders SET match_from = :match_from, broadcast_until = :broadcast_until, next_round_at = NULL,
    nobody_reasons = NULL, policy_id = :policy_id, offered_at = coalesce(offered_at, :at), updated_at = :at
WHERE id = :id
""")

_NOBODY = Sql("""
UPDATE work_orders w SET nobody_reasons = :reasons,
    next_round_at = CASE
        WHEN CAST(:again_at AS timestamptz) IS NOT NULL THEN coalesce(w.next_round_at, :again_at)
        -- Who was asked in this round and left duty may come back, and then finds it over.
        WHEN CAST(:recheck_at AS timestamptz) IS NOT NULL AND EXISTS (
            SELECT FROM offers o WHERE o.work_order_id = w.id AND o.round = w.round
                AND (o.status <> 'rejected' OR NOT :reject_memory)) THEN coalesce(w.next_round_at, :recheck_at)
    END
WHERE w.id = :id
""")

_COUNT = Sql(
    "UPDATE dispatch_lanes SET last_number = :number, last_hash = :hash WHERE organization_id = :organization_id"
)

_STILL_WAITING = Sql(
    "SELECT match_from IS NOT NULL AND match_from <= clock_timestamp() FROM work_orders WHERE id = :id"
)


class Matched(msgspec.Struct, frozen=True):
    """The work order that the lane served."""

    work_order_id: UUID


class LaneBusy(Exception):
    """The chosen driver changed before we had their lock; try again in a new transaction."""


class ServingFailed(Exception):
    """The lane could not serve this work order, by a mistake of ours: the cause. Whoever asked is not at fault."""

    def __init__(self, work_order_id: UUID) -> None:
        super().__init__(work_order_id)
        self.work_order_id = work_order_id


async def match_next(session: Session, organization_id: UUID, *, own: UUID) -> Matched | None:
    """Serve the first waiting work order that somebody can take; None when there is no such pair.

    `own` is the caller's work order: when nothing matches, why nobody can take it is looked up and recorded. Another's
    is woken. Raises LaneBusy, ServingFailed.
    """
    lane = await session.row(_LOCK_LANE, {"organization_id": organization_id})
    assert lane is not None, "every organization has a lane"
    policies = await current_policies(session, organization_id)
    passed: list[UUID] = []
    while (head := await first_servable(session, organization_id, policies=policies, passed=passed)) is not None:
        try:
            served = await _serve(session, lane, head, policies, own=own)
        except LaneBusy:
            raise
        except Exception as error:
            if is_outage(error):
                raise
            raise ServingFailed(head) from error
        if served:
            return Matched(head)
        passed.append(head)
    if await still_waits(session, own):
        await _serve(session, lane, own, policies, own=own, record_nobody=True)
    return None


async def still_waits(session: Session, work_order_id: UUID) -> bool:
    """May the lane serve this work order now?"""
    return bool(await session.value(_STILL_WAITING, {"id": work_order_id}))


class _Turn(msgspec.Struct, frozen=True):
    """One look at one work order while the lane is held: what the choice is made from, and the choice."""

    lane: Row[Any]
    work_order: Row[Any]
    current: CurrentPolicy
    work: Work
    #: Microseconds since 1970 UTC.
    now: int
    candidates: list[Candidate]
    choice: Choice
    #: The eligible drivers' rows, best first.
    ranked: list[Row[Any]]


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
    turn = await _look(session, lane, work_order, current)
    if not turn.choice.order:
        if record_nobody:
            _record_nobody(session, turn)
        return False
    if current.policy.mode is Mode.BROADCAST and work_order.broadcast_until is None:
        _broadcast(session, turn)
    else:
        best = turn.ranked[0]
        driver = await lock_driver(session, best.driver_id)
        if driver.state_version != best.state_version:
            # Somebody changed the driver while we waited for the lock. Their new state is committed, and is ranked in
            # a new transaction: this one holds a driver, so it may ask for no other and for no work order.
            raise LaneBusy
        if work_order.broadcast_until is not None:
            await _auto_assign(session, turn, driver)
        else:
            _offer(session, turn, driver)
    if work_order.id != own and work_order.nobody_reasons is not None:
        # It has looked and gone to wait. One that has not is about to look, and will see its offer.
        raise_wake(session, work_order.id, work_order.organization_id, Wake.DRIVER_AVAILABLE)
    return True


async def _look(session: Session, lane: Row[Any], work_order: Row[Any], current: CurrentPolicy) -> _Turn:
    rows = await read_candidates(session, work_order)
    candidates = [candidate_of(row) for row in rows]
    work, now = facts_of(work_order), micros(work_order.now)
    choice = choose(current.policy, work, now, candidates)
    by_id = {candidate.driver_id: row for candidate, row in zip(candidates, rows, strict=True)}
    ranked = [by_id[driver_id] for driver_id in choice.order]
    return _Turn(lane, work_order, current, work, now, candidates, choice, ranked)


def _decide(session: Session, turn: _Turn, *, action: str, chosen: int) -> UUID:
    """Write decision number n of the lane, chained to n - 1. `chosen`: how many of the ranked get the offer."""
    number = turn.lane.last_number + 1
    organization_id = turn.work_order.organization_id
    order, excluded = outcome(turn.choice, turn.candidates)
    header = Header(
        number=number,
        organization_id=str(organization_id),
        rule_version=RULE_VERSION,
        policy_id=str(turn.current.id),
        policy_version=turn.current.version,
        policy=turn.current.policy,
        now=turn.now,
        work=turn.work,
        action=action,
        chosen=chosen,
        order=order,
        excluded=excluded,
    )
    made = make_record(header, turn.candidates, turn.lane.last_hash)
    decision_id = new_id()
    session.stage(
        decisions,
        id=decision_id,
        organization_id=organization_id,
        number=number,
        work_order_id=turn.work_order.id,
        driver_id=turn.ranked[0].driver_id if chosen else None,
        policy_id=turn.current.id,
        rule_version=RULE_VERSION,
        decided_at=turn.work_order.now,
        header=made.header,
        candidates=made.candidates,
        salts=made.salts,
        body_hash=made.body_hash,
        previous_hash=turn.lane.last_hash,
        hash=made.hash,
        summary=summary_of(turn.choice),
    )
    counted = {"organization_id": organization_id, "number": number, "hash": made.hash}
    session.write(_COUNT, counted, row=organization_id)
    return decision_id


def summary_of(choice: Choice) -> str:
    """`busy:4,silent:1`; `nobody_on_duty` when there was nobody to exclude."""
    reasons = choice.reasons()
    if not reasons and not choice.order:
        return "nobody_on_duty"
    return ",".join(f"{reason.value}:{count}" for reason, count in reasons.items())


def _offer(session: Session, turn: _Turn, driver: Row[Any]) -> None:
    """One driver, exclusively."""
    best = turn.ranked[0]
    decision_id = _decide(session, turn, action="offer", chosen=1)
    row = _row(turn, best, OfferMode.SEQUENTIAL, at=driver.now, decision_id=decision_id, round_=turn.work_order.round)
    session.write(_ASKED, {"driver_id": driver.driver_id, "at": driver.now}, row=driver.driver_id)
    _note_offered(session, turn, [row], [best.user_id], match_from=None, broadcast_until=None)


def _broadcast(session: Session, turn: _Turn) -> None:
    """The best-ranked drivers at once; the first accept wins. Nobody's place in line moves."""
    policy, at = turn.current.policy, turn.work_order.now
    chosen = turn.ranked[: policy.broadcast_limit]
    decision_id = _decide(session, turn, action="broadcast", chosen=len(chosen))
    rows = [
        _row(turn, best, OfferMode.BROADCAST, at=at, decision_id=decision_id, round_=turn.work_order.round, after=i)
        for i, best in enumerate(chosen)
    ]
    until = at + timedelta(seconds=policy.broadcast_window_s)
    match_from = until if policy.auto_assign else None
    users = [best.user_id for best in chosen]
    _note_offered(session, turn, rows, users, match_from=match_from, broadcast_until=until)


async def _auto_assign(session: Session, turn: _Turn, driver: Row[Any]) -> None:
    """The broadcast's window ended untaken: the best-ranked driver is assigned, without being asked."""
    work_order, at = turn.work_order, driver.now
    await close_pending(session, work_order, OfferReason.SUPERSEDED, at=at)
    decision_id = _decide(session, turn, action="auto", chosen=1)
    # The driver may have been asked in this round already, and an offer is made once a round.
    round_ = work_order.round + 1
    row = _row(turn, turn.ranked[0], OfferMode.AUTO, at=at, decision_id=decision_id, round_=round_)
    insert_offers(session, [row | {"status": "accepted", "responded_at": at}])
    _record_made(session, work_order, row)
    assign(
        session, work_order, driver.driver_id, offer_id=row["id"], policy=turn.current.policy, at=at, offered_at=at,
        round_=round_,
    )  # fmt: skip
    await notify_driver(session, Event.ASSIGNED, work_order, driver.driver_id, at=at, offer_id=row["id"])


def _row(
    turn: _Turn, best: Row[Any], mode: OfferMode, *, at: datetime, decision_id: UUID, round_: int, after: int = 0
) -> dict[str, Any]:
    return offer_row(
        turn.work_order, best, policy_id=turn.current.id, policy=turn.current.policy, mode=mode,
        exclusive=mode is OfferMode.SEQUENTIAL, round_=round_, sequence=best.next_sequence + after, at=at,
        decision_id=decision_id, latest=best.latest_expiry,
    )  # fmt: skip


def _note_offered(
    session: Session,
    turn: _Turn,
    rows: list[dict[str, Any]],
    users: list[UUID],
    *,
    match_from: datetime | None,
    broadcast_until: datetime | None,
) -> None:
    work_order = turn.work_order
    insert_offers(session, rows)
    offered = {
        "id": work_order.id,
        "at": rows[0]["offered_at"],
        "match_from": match_from,
        "broadcast_until": broadcast_until,
        "policy_id": turn.current.id,
    }
    session.write(_OFFERED, offered, row=work_order.id)
    for row, user_id in zip(rows, users, strict=True):
        _record_made(session, work_order, row)
        notify(
            session, Event.OFFER_MADE, organization_id=work_order.organization_id, user_id=user_id,
            at=row["offered_at"], work_order_id=work_order.id, offer_id=row["id"],
        )  # fmt: skip


def _record_made(session: Session, work_order: Row[Any], row: dict[str, Any]) -> None:
    record(
        session, "OFFER_MADE", organization_id=work_order.organization_id, entity_type="offer", entity_id=row["id"],
        work_order_id=work_order.id, driver_id=row["driver_id"], mode=row["mode"],
    )  # fmt: skip


def _record_nobody(session: Session, turn: _Turn) -> None:
    """Nobody is eligible. Recorded when the reasons change; a round in which everybody was asked is over."""
    work_order, policy = turn.work_order, turn.current.policy
    reasons, summary = turn.choice.reasons(), summary_of(turn.choice)
    if _names(summary) != _names(work_order.nobody_reasons or ""):
        _decide(session, turn, action="nobody", chosen=0)
    recheck_at: datetime | None = work_order.now + timedelta(seconds=policy.recheck_s)
    again_at: datetime | None = None
    if Exclusion.ALREADY_OFFERED in reasons:
        again_at = recheck_at
    elif Exclusion.LAPSE_PAUSE in reasons:
        paused = {driver_id for driver_id, reason in turn.choice.excluded if reason is Exclusion.LAPSE_PAUSE}
        ends = [lapse_ends_at(policy, c) or turn.now for c in turn.candidates if c.driver_id in paused]
        again_at = work_order.now + timedelta(microseconds=min(ends) - turn.now)
    if policy.max_rounds is not None and work_order.round >= policy.max_rounds:
        again_at = recheck_at = None
    values = {
        "id": work_order.id, "reasons": summary, "again_at": again_at, "recheck_at": recheck_at,
        "reject_memory": policy.reject_memory,
    }  # fmt: skip
    session.write(_NOBODY, values, row=work_order.id)


def _names(summary: str) -> set[str]:
    return {part.partition(":")[0] for part in summary.split(",")}
