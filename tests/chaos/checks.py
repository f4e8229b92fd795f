"""After the run: whatever clients were told is true, nobody did what no client asked for, and every invariant holds."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.engine import Row

from models.kit.database import Database
from models.work.rules import WorkOrderStatus
from tests.chaos.client import NOT_YET
from tests.chaos.faults import Done
from tests.chaos.ledger import Attempt, Certain, Fact, Ledger, Outcome
from tests.chaos.system import POSTGRES, TWILIO, WORKER, System, link
from tests.factories import invariants

#: One machine, one clock; what is told here was measured there.
CLOCK_S = 0.01
#: How long after a message went out its outcome may get lost: the provider's time limit and an outage of Postgres.
SEND_WINDOW_S = 90.0
#: States and the kind of request that brings them about.
_ANSWERS = {"accepted": "accept", "rejected": "reject"}
_ENDS_OF_ASSIGNMENT = {"handed_back": "hand back", "unassigned": "unassign"}
_ENDS = {"cancelled": "cancel", "completed": "report completed"}
_REFERENCE = re.compile(r"\b[A-Z]{2}-\d+\b")

_WORK = """
SELECT w.id::text AS id, w.kind, w.status, coalesce(e.premise_id, w.address) AS marker
FROM work_orders w LEFT JOIN enrollments e ON e.work_order_id = w.id
"""
_ASSIGNMENTS = """
SELECT a.work_order_id::text AS work_order_id, a.driver_id::text AS driver_id, a.offer_id::text AS offer_id,
    extract(epoch FROM a.starts_at)::float8 AS starts_at, extract(epoch FROM a.ends_at)::float8 AS ends_at, a.ended_by
FROM assignments a ORDER BY a.work_order_id, a.starts_at
"""
_OFFERS = """
SELECT id::text AS id, work_order_id::text AS work_order_id, driver_id::text AS driver_id, status, mode FROM offers
"""
_MESSAGES = """
SELECT n.id::text AS id, n.channel, n.status, n.sent_by, n.provider_id, n.attempt, n.error, u.phone, w.reference
FROM notifications n JOIN users u ON u.id = n.user_id LEFT JOIN work_orders w ON w.id = n.work_order_id
"""


class Violation(msgspec.Struct, frozen=True, order=True):
    """`check` names the promise that was broken, `detail` the rows that show it."""

    check: str
    detail: str


class Stored(msgspec.Struct):
    """What the database holds in the end."""

    work: list[Row[Any]]
    assignments: list[Row[Any]]
    offers: list[Row[Any]]
    messages: list[Row[Any]]

    @classmethod
    async def read(cls, database: Database) -> Stored:
        async with database.reading() as session:
            return cls(*[list(await session.rows(text(sql))) for sql in (_WORK, _ASSIGNMENTS, _OFFERS, _MESSAGES)])


async def check_invariants(database: Database) -> list[Violation]:
    """What holds in every database, and what a run in particular must leave."""
    found = [Violation(name, str(rows)) for name, rows in (await invariants.broken(database, quiet=True)).items()]
    try:
        await invariants.check_decisions(database)
    except AssertionError as error:
        found.append(Violation("each decision follows from its inputs", str(error)))
    async with database.reading() as session:
        parked = await session.rows(text("SELECT work_order_id, failures, error FROM stuck_work"))
    return found + [Violation("an outage is no reason to park work", str(row)) for row in parked]


def check_ledger(ledger: Ledger, stored: Stored) -> list[Violation]:
    """Clients and database agree."""
    checks = (
        _creations, _replays, _answers, _accepts, _ends, _reports, _one_holder, _uninvited,
    )  # fmt: skip
    return [violation for check in checks for violation in check(ledger, stored)]


def _creations(ledger: Ledger, stored: Stored) -> Iterator[Violation]:
    by_marker: dict[str, list[Any]] = defaultdict(list)
    for work in stored.work:
        by_marker[work.marker].append(work)
    for marker, creation in ledger.creations.items():
        found = [work.id for work in by_marker.pop(marker, [])]
        if creation.work_order_id is None:
            yield Violation("every creation is answered in the end", f"{marker}: {found}")
        elif found != [creation.work_order_id]:
            yield Violation(
                "an acknowledged creation exists exactly once", f"{marker}: told {creation.work_order_id}, is {found}"
            )
    if by_marker:
        yield Violation("nothing exists that no client asked for", f"work orders {sorted(by_marker)[:5]}")


def _replays(ledger: Ledger, _: Stored) -> Iterator[Violation]:
    for marker, ids in ledger.replayed.items():
        first = ledger.creations[marker].work_order_id
        if ids - {first}:
            yield Violation("a replayed creation gives the first answer", f"{marker}: {first}, then {sorted(ids)}")


def _answers(ledger: Ledger, _: Stored) -> Iterator[Violation]:
    for attempt in ledger.attempts:
        if attempt.code == "INTERNAL_ERROR" or (attempt.status >= 500 and attempt.status != 503):
            yield Violation("no answer is an error of ours", f"{attempt.status} {attempt.code}: {_told(attempt)}")
        creates = attempt.kind.startswith(("create", "replay"))
        if creates and attempt.outcome is Outcome.REFUSED and attempt.code not in NOT_YET:
            yield Violation("a valid creation is not refused", _told(attempt))
        if attempt.status in (400, 401, 403, 405, 422, 428, 429):
            yield Violation("a valid request is not turned away", f"{attempt.status} {_told(attempt)}")


def _told(attempt: Attempt) -> str:
    return f"{attempt.kind} {attempt.subject} {attempt.code} by {attempt.actor} at {attempt.sent_at:.3f}"


def _accepts(ledger: Ledger, stored: Stored) -> Iterator[Violation]:
    offers = {offer.id: offer for offer in stored.offers}
    assigned = {(row.offer_id, row.driver_id, row.work_order_id) for row in stored.assignments}
    for fact in ledger.facts_of(Certain.ACCEPTED):
        if (fact.offer_id, fact.driver_id, fact.work_order_id) not in assigned:
            yield Violation("an acknowledged accept assigned that driver", str(fact))
    for fact in ledger.facts_of(Certain.REJECTED):
        if offers[fact.offer_id].status != "rejected":
            yield Violation("an acknowledged reject stands", str(fact))


def _ends(ledger: Ledger, stored: Stored) -> Iterator[Violation]:
    status = {work.id: work.status for work in stored.work}
    for fact in ledger.facts_of(Certain.CANCELLED):
        if status.get(fact.work_order_id) != WorkOrderStatus.CANCELLED:
            yield Violation("an acknowledged cancellation stands", f"{fact} is {status.get(fact.work_order_id)}")
    for fact in ledger.facts_of(Certain.REPORTED):
        if fact.status == WorkOrderStatus.COMPLETED and status.get(fact.work_order_id) != fact.status:
            yield Violation("an acknowledged completion stands", f"{fact} is {status.get(fact.work_order_id)}")


def _reports(ledger: Ledger, stored: Stored) -> Iterator[Violation]:
    """Whoever was told that their report, hand-back or assignment went through held the work at some instant between
    asking and hearing it."""
    held: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for row in stored.assignments:
        held[row.work_order_id, row.driver_id].append(row)
    for what in (Certain.ACCEPTED, Certain.REPORTED, Certain.HANDED_BACK, Certain.FORCED):
        for fact in ledger.facts_of(what):
            if not any(_within(fact, row) for row in held[fact.work_order_id, fact.driver_id]):
                yield Violation("who was told to hold the work held it", str(fact))
    for fact in ledger.facts_of(Certain.HANDED_BACK):
        if not any(row.ended_by == "handed_back" for row in held[fact.work_order_id, fact.driver_id]):
            yield Violation("an acknowledged hand-back stands", str(fact))


def _within(fact: Fact, assignment: Any) -> bool:
    ends_at = float("inf") if assignment.ends_at is None else assignment.ends_at
    if fact.what is Certain.ACCEPTED:
        # Asked again after a lost answer, an accept of work that is done answers as it did.
        return bool(assignment.offer_id == fact.offer_id and assignment.starts_at <= fact.told_at + CLOCK_S)
    return bool(assignment.starts_at <= fact.told_at + CLOCK_S and ends_at >= fact.since - CLOCK_S)


def _one_holder(_: Ledger, stored: Stored) -> Iterator[Violation]:
    before: Any = None
    for row in stored.assignments:
        same = before is not None and before.work_order_id == row.work_order_id
        if same and (before.ends_at is None or row.starts_at < before.ends_at):
            yield Violation("no work order was held by two at once", f"{before} and {row}")
        before = row


def _uninvited(ledger: Ledger, stored: Stored) -> Iterator[Violation]:
    """What only people may do was asked for by one."""
    asked = {(attempt.kind, attempt.subject) for attempt in ledger.attempts}
    for done, subject in _done_by_people(stored):
        if (done, subject) not in asked:
            yield Violation("nothing was done that no client asked for", f"{done} of {subject}")


def _done_by_people(stored: Stored) -> Iterator[tuple[str, str]]:
    """What the database says that people did: the kind of request that does it, and its subject."""
    for offer in stored.offers:
        if offer.mode == "force":
            yield "force", offer.work_order_id
        elif offer.mode != "auto" and offer.status in _ANSWERS:
            yield _ANSWERS[offer.status], offer.id
    for row in stored.assignments:
        if row.ended_by in _ENDS_OF_ASSIGNMENT:
            yield _ENDS_OF_ASSIGNMENT[row.ended_by], row.work_order_id
    for work in stored.work:
        if work.status in _ENDS:
            yield _ENDS[work.status], work.id


def check_messages(system: System, stored: Stored, faults: Sequence[Done]) -> list[Violation]:
    """Providers and database agree: an e-mail once per key, an SMS once, and once more per crash or lost answer inside
    its send window."""
    return [*_unfinished(stored), *_emails(system, stored), *_texts(system, stored, faults)]


def _unfinished(stored: Stored) -> Iterator[Violation]:
    for message in stored.messages:
        if message.status not in ("sent", "delivered") and not (message.status == "failed" and message.error):
            yield Violation("a message is sent, or failed with a reason", str(message))


def _emails(system: System, stored: Stored) -> Iterator[Violation]:
    delivered = Counter(item["key"] for item in system.resend.delivered)
    mails = {message.id: message for message in stored.messages if message.channel == "email"}
    for key, count in delivered.items():
        if count != 1:
            yield Violation("an e-mail is delivered once", f"{key}: {count} times")
        if key not in mails:
            yield Violation("nothing was sent that nobody wrote", f"e-mail {key}")
    for message in mails.values():
        if message.status == "sent" and message.id not in delivered:
            yield Violation("what counts as sent was delivered", str(message))


def _texts(system: System, stored: Stored, faults: Sequence[Done]) -> Iterator[Violation]:
    texts = [message for message in stored.messages if message.channel == "sms"]
    sids = {item["sid"] for item in system.twilio.delivered}
    for message in texts:
        if message.status == "sent" and message.provider_id not in sids:
            yield Violation("what counts as sent was delivered", str(message))
    sent = Counter(
        (message.phone, message.reference) for message in texts if message.status == "sent" and message.provider_id
    )
    attempts: Counter[tuple[str, str]] = Counter()
    for message in texts:
        attempts[message.phone, message.reference] += message.attempt
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for item, at in zip(system.twilio.delivered, system.twilio.delivered.times, strict=True):  # type: ignore[attr-defined]
        reference = _REFERENCE.search(item["body"])
        times[item["to"], reference[0] if reference else ""].append(at)
    for about, delivered in times.items():
        extra = len(delivered) - sent[about]
        if extra > 0:
            explained = min(attempts[about] - sent[about], _send_faults(faults, min(delivered), max(delivered)))
            if extra > explained:
                yield Violation(
                    "an SMS comes twice only for a crash or a lost answer in its send window",
                    f"{about}: {len(delivered)} delivered, {sent[about]} owed, {explained} explained",
                )


def _send_faults(faults: Sequence[Done], since: float, until: float) -> int:
    """Faults that can lose what became of an SMS that went out between these instants."""
    targets = {WORKER, POSTGRES, link(WORKER, POSTGRES), link(WORKER, TWILIO)}
    return sum(
        done.fault.target in targets and done.ended_at >= since - 1 and done.began_at <= until + SEND_WINDOW_S
        for done in faults
    )


def doubled_texts(system: System, stored: Stored) -> int:
    """How many SMS reached a phone more often than owed."""
    owed = [message for message in stored.messages if message.channel == "sms" and message.status == "sent"]
    return len(system.twilio.delivered) - len(owed)
