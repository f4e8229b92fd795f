"""How soon after a fault the work that it hindered goes on."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from sqlalchemy import text

from models.kit.database import Database
from tests.chaos.faults import Done
from tests.chaos.ledger import Ledger, Outcome
from tests.chaos.system import API, LINKS, PARTS, POSTGRES, RESEND, TEMPORAL, TWILIO, WORKER, System, link

REQUEST, OFFER, SMS, EMAIL = "a request acknowledged", "an offer made", "an SMS delivered", "an e-mail delivered"

#: What each target's failure hinders. Requests need API and Postgres only; a new offer needs everything but them.
HINDERED: dict[str, str] = {
    API: REQUEST,
    POSTGRES: REQUEST,
    WORKER: OFFER,
    TEMPORAL: OFFER,
    link("client", API): REQUEST,
    link(API, POSTGRES): REQUEST,
    link(WORKER, POSTGRES): OFFER,
    link(API, TEMPORAL): OFFER,
    link(WORKER, TEMPORAL): OFFER,
    link(WORKER, TWILIO): SMS,
    link(WORKER, RESEND): EMAIL,
}


async def successes(database: Database, ledger: Ledger, system: System) -> dict[str, list[float]]:
    """When each kind of thing succeeded, in seconds since 1970, ascending. A request counts by when it was sent."""
    async with database.reading() as session:
        made = await session.rows(
            text("SELECT extract(epoch FROM offered_at)::float8 AS at FROM offers WHERE decision_id IS NOT NULL")
        )
    return {
        REQUEST: sorted(a.sent_at for a in ledger.attempts if a.outcome is Outcome.ACKNOWLEDGED),
        OFFER: sorted(row.at for row in made),
        SMS: sorted(system.twilio.delivered.times),  # type: ignore[attr-defined]
        EMAIL: sorted(system.resend.delivered.times),  # type: ignore[attr-defined]
    }


def recoveries(faults: Sequence[Done], successes: dict[str, list[float]]) -> dict[str, list[float]]:
    """By target, the seconds from the end of each fault to the next success of what it hindered, ascending. Other
    faults that came in between are in it; one after which nothing more was to do is left out."""
    found: dict[str, list[float]] = {target: [] for target in (*PARTS, *LINKS)}
    for done in faults:
        times = successes[HINDERED[done.fault.target]]
        following = bisect_left(times, done.ended_at)
        if following < len(times):
            found[done.fault.target].append(times[following] - done.ended_at)
    return {target: sorted(times) for target, times in found.items()}


def percentile(times: Sequence[float], share: float) -> float:
    """Of ascending times; the smallest that `share` of them do not exceed."""
    return times[max(0, math.ceil(len(times) * share) - 1)]
