"""What must hold in every database at every commit, as named queries: each finds the rows that break its rule.

Asked all together in one snapshot, so that they see one state, also while the system works (`fairlead doctor
--invariants`). The groups below follow the list of promises: 1 the guards of dispatch, 2 assignments, 3 kept answers,
4 events and the audit chain, 5 states, 6 messages and wakes, 8 tenancy, 10 sign-ins.

Elsewhere: whether decisions follow from their inputs (models/fairness/chain.py), and whether the workflows that run are
those of open work (workflows/reconcile.py). Not held here yet, since their subjects do not exist: 9 forced row-level
security, 11 the order of positions, 12 what providers delivered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from sqlalchemy import Uuid, text
from sqlalchemy.exc import DBAPIError

from models.audit.invariants import AUDIT_INVARIANTS
from models.kit.database import Database, Session
from models.kit.outages import is_outage
from models.schema import metadata
from models.work.rules import KIND_TRANSITIONS, TRANSITIONS, WorkKind

#: How many rows of a broken invariant are shown.
SHOWN = 5


class Invariant(msgspec.Struct, frozen=True):
    """A query that returns no rows, columns of which are ids and states, never personal data.

    `when_quiet` ones say that what is owed gets done in good time: they hold where senders, relay and sealer run, and
    fail where these have been down for longer than the query allows.
    """

    name: str
    query: str
    when: Literal["always", "when_quiet"] = "always"


_LEGAL = ", ".join(
    f"('{kind}', '{current}', '{target}')"
    for kind in WorkKind
    for steps in (TRANSITIONS, KIND_TRANSITIONS.get(kind, {}))
    for current, targets in steps.items()
    for target in targets
)

_GUARDS = (
    Invariant(
        "a driver answers one exclusive offer at a time",
        "SELECT driver_id FROM offers WHERE status = 'pending' AND exclusive GROUP BY 1 HAVING count(*) > 1",
    ),
    Invariant(
        "a work order has one exclusive offer at a time",
        "SELECT work_order_id FROM offers WHERE status = 'pending' AND exclusive GROUP BY 1 HAVING count(*) > 1",
    ),
    Invariant(
        "a work order has at most one open assignment",
        "SELECT work_order_id FROM assignments WHERE ends_at IS NULL GROUP BY 1 HAVING count(*) > 1",
    ),
    Invariant(
        "active_count is the number of open counted assignments",
        """
        SELECT d.driver_id, d.active_count, count(a.id) FROM driver_dispatch d
        LEFT JOIN assignments a ON a.driver_id = d.driver_id AND a.ends_at IS NULL AND a.counted
        GROUP BY d.driver_id, d.active_count HAVING d.active_count <> count(a.id)""",
    ),
    # Work scheduled ahead is taken before it counts, and may come due on top of what its driver holds by then.
    Invariant(
        "no driver holds more than the widest policy allows",
        """
        SELECT a.driver_id, count(*) FROM assignments a JOIN work_orders w ON w.id = a.work_order_id
        WHERE a.ends_at IS NULL AND a.counted AND w.scheduled_for IS NULL
        GROUP BY a.organization_id, a.driver_id HAVING count(*) > (
            SELECT max(coalesce(settings->'busy_fallback' = 'true', false)::int
                + CASE WHEN jsonb_typeof(settings->'capacity') = 'number' THEN (settings->>'capacity')::int ELSE 1 END)
            FROM dispatch_policies p WHERE p.organization_id = a.organization_id)""",
    ),
    Invariant(
        "an offer of the lane goes to the driver of its decision",
        """
        SELECT o.id FROM offers o JOIN decisions d ON d.id = o.decision_id
        WHERE (o.mode <> 'broadcast' AND o.driver_id <> d.driver_id) OR o.work_order_id <> d.work_order_id""",
    ),
    Invariant(
        "each decision but `nobody` made an offer",
        """
        SELECT d.organization_id, d.number FROM decisions d LEFT JOIN offers o ON o.decision_id = d.id
        WHERE (d.driver_id IS NOT NULL) <> (o.id IS NOT NULL)""",
    ),
    Invariant(
        "the lane counts its decisions without a gap",
        """
        SELECT l.organization_id FROM dispatch_lanes l LEFT JOIN decisions d USING (organization_id)
        GROUP BY l.organization_id, l.last_number
        HAVING count(DISTINCT d.number) <> l.last_number OR count(d.number) <> l.last_number
            OR coalesce(max(d.number), 0) <> l.last_number""",
    ),
    Invariant(
        "each decision is chained to the one before, and the last to its lane",
        """
        SELECT organization_id, number FROM (
            SELECT organization_id, number, previous_hash, hash, body_hash,
                lag(hash, 1, '') OVER chain AS hash_before, lead(number) OVER chain AS next_number
            FROM decisions WINDOW chain AS (PARTITION BY organization_id ORDER BY number)) d
        JOIN dispatch_lanes l USING (organization_id)
        WHERE previous_hash <> hash_before OR hash <> sha256(previous_hash || int8send(number) || body_hash)
            OR (next_number IS NULL AND hash <> l.last_hash)""",
    ),
)

_ASSIGNMENTS = (
    Invariant(
        "held work has an open assignment to its driver, other work none",
        """
        SELECT w.id, w.status FROM work_orders w
        LEFT JOIN assignments a ON a.work_order_id = w.id AND a.ends_at IS NULL
        WHERE (w.status IN ('assigned', 'en_route', 'arrived', 'in_progress')) <> (a.id IS NOT NULL)
            OR a.driver_id <> w.assigned_driver_id""",
    ),
    Invariant(
        "completed work has one completed assignment, to its driver",
        """
        SELECT w.id, w.status FROM work_orders w
        LEFT JOIN assignments a ON a.work_order_id = w.id AND a.ended_by = 'completed'
        GROUP BY w.id HAVING count(a.id) <> (w.status IN ('completed', 'disputed'))::int
            OR bool_or(a.driver_id <> w.assigned_driver_id)""",
    ),
    Invariant(
        "every accepted offer made one assignment",
        """
        SELECT o.id FROM offers o LEFT JOIN assignments a ON a.offer_id = o.id AND a.driver_id = o.driver_id
        WHERE (o.status = 'accepted') <> (a.id IS NOT NULL)""",
    ),
    Invariant(
        "only waiting work has open offers",
        """
        SELECT o.id, w.status FROM offers o JOIN work_orders w ON w.id = o.work_order_id
        WHERE o.status = 'pending' AND w.status <> 'pending'""",
    ),
    # A person's: nothing is offered by itself, or every round is over. After the last answer to a broadcast the next
    # round is planned by the workflow's look, which has its time.
    Invariant(
        "waiting work is in the lane, on offer, due for a round, a person's, or parked",
        """
        SELECT w.id FROM work_orders w JOIN dispatch_policies p ON p.id = w.policy_id
        WHERE w.status = 'pending' AND NOT w.manual AND w.match_from IS NULL AND w.next_round_at IS NULL
            AND NOT CASE WHEN jsonb_typeof(p.settings->'max_rounds') = 'number'
                THEN w.round >= (p.settings->>'max_rounds')::int ELSE false END
            AND NOT EXISTS (SELECT FROM offers o WHERE o.work_order_id = w.id AND (o.status = 'pending'
                OR w.broadcast_until IS NOT NULL AND o.responded_at > now() - interval '60 s'))
            AND NOT EXISTS (SELECT FROM stuck_work s WHERE s.work_order_id = w.id AND s.parked_at IS NOT NULL)""",
    ),
)

_EVENTS = (
    Invariant(
        "each event begins where the one before ended",
        """
        SELECT work_order_id, previous_status, before FROM (
            SELECT work_order_id, previous_status,
                lag(new_status) OVER (PARTITION BY work_order_id ORDER BY created_at, id) AS before
            FROM work_order_events) e
        WHERE previous_status IS DISTINCT FROM before""",
    ),
    Invariant(
        "every event is a step of the table",
        f"""
        SELECT e.work_order_id, e.previous_status, e.new_status
        FROM work_order_events e JOIN work_orders w ON w.id = e.work_order_id
        WHERE e.previous_status IS NOT NULL
            AND (w.kind, e.previous_status, e.new_status) NOT IN (VALUES {_LEGAL})""",  # noqa: S608 - our own enumerations
    ),
    Invariant(
        "the last event is the status",
        """
        SELECT w.id, w.status, e.new_status FROM work_orders w LEFT JOIN LATERAL (
            SELECT new_status FROM work_order_events WHERE work_order_id = w.id
            ORDER BY created_at DESC, id DESC LIMIT 1
        ) e ON true WHERE e.new_status IS DISTINCT FROM w.status""",
    ),
    Invariant(
        "a state change has one event and one audit row",
        """
        SELECT work_order_id, sum(n), kind FROM (
            SELECT work_order_id, 1 AS n, coalesce(previous_status, '-') || '>' || new_status AS kind
            FROM work_order_events
            UNION ALL
            SELECT entity_id, -1, coalesce(metadata->>'from', '-') || '>' || coalesce(metadata->>'to', 'pending')
            FROM audit_log WHERE entity_type = 'work_order' AND (metadata ? 'to' OR action LIKE '%\\_CREATED')
        ) both_sides GROUP BY work_order_id, kind HAVING sum(n) <> 0""",
    ),
)

_AUDIT_CHAIN = tuple(
    Invariant(name, query, when="when_quiet" if "waits for" in name else "always")
    for name, query in AUDIT_INVARIANTS.items()
)

_KEPT_AND_OWED = (
    Invariant(
        "nothing was sent that was not owed",
        "SELECT work_order_id FROM workflow_wakes WHERE sent_seq > seq",
    ),
    Invariant(
        "every open work order has its wakes",
        """
        SELECT w.id, w.status FROM work_orders w WHERE w.status IN ('pending', 'assigned', 'en_route', 'arrived',
            'in_progress') AND NOT EXISTS (SELECT FROM workflow_wakes k WHERE k.work_order_id = w.id)""",
    ),
    Invariant(
        "a wake is sent within 60 s of being due",
        "SELECT work_order_id, reason, attempts FROM workflow_wakes "
        "WHERE seq > sent_seq AND due_at < now() - interval '60 s'",
        when="when_quiet",
    ),
    Invariant(
        "a message is sent within 60 s of being due",
        "SELECT id, event, attempt FROM notifications WHERE status = 'pending' AND next_at < now() - interval '60 s'",
        when="when_quiet",
    ),
    # A lease is a minute long and moves with every new one: over four minutes past its end, nobody has it.
    Invariant(
        "no message is being sent for over 5 minutes",
        "SELECT id, event, attempt FROM notifications "
        "WHERE status = 'sending' AND leased_until < now() - interval '4 min'",
        when="when_quiet",
    ),
)

_SIGN_INS = (
    Invariant(
        "a sign-in has one live refresh token",
        "SELECT family_id FROM sessions WHERE revoked_at IS NULL GROUP BY 1 HAVING count(*) > 1",
    ),
    Invariant(
        "a sign-in is one person's",
        "SELECT family_id FROM sessions GROUP BY 1 HAVING count(DISTINCT user_id) > 1",
    ),
)

#: References that no foreign key holds, since partitioned tables keep what outlives its subject.
_LOOSE = (
    ("decisions", "driver_id", "driver_profiles"),
    ("decisions", "policy_id", "dispatch_policies"),
    ("notifications", "user_id", "users"),
    ("notifications", "work_order_id", "work_orders"),
    ("notifications", "offer_id", "offers"),
    ("offers", "decision_id", "decisions"),
    ("work_order_events", "driver_id", "driver_profiles"),
)


def tenant_references() -> Iterator[tuple[str, str, str, str]]:
    """Child, its column, parent, its column: every foreign key that carries the organization, and `_LOOSE`."""
    for table in metadata.sorted_tables:
        for key in table.foreign_key_constraints:
            pairs = {element.parent.name: element.column for element in key.elements}
            if (owner := pairs.pop("organization_id", None)) is not None and owner.name == "organization_id":
                ((column, referred),) = pairs.items()
                yield table.name, column, referred.table.name, referred.name
    for child, column, parent in _LOOSE:
        yield child, column, parent, "id"


def _same_organization() -> str:
    """The key is held by the parent's id alone here, so that a foreign key that was cut or bypassed still shows."""
    return " UNION ALL ".join(
        f"SELECT '{child}.{column}' AS reference, c.{column}::text, c.organization_id FROM {child} c "  # noqa: S608 - names of our own tables
        f"JOIN {parent} p ON p.{referred} = c.{column} WHERE p.organization_id <> c.organization_id"
        for child, column, parent, referred in tenant_references()
    )


def _parents_exist() -> str:
    return " UNION ALL ".join(
        f"SELECT '{table.name}.{element.parent.name}' AS reference, c.{element.parent.name}::text FROM {table.name} c "  # noqa: S608 - names of our own tables
        f"WHERE c.{element.parent.name} IS NOT NULL AND NOT EXISTS (SELECT FROM {element.column.table.name} p "
        f"WHERE p.{element.column.name} = c.{element.parent.name})"
        for table in metadata.sorted_tables
        for key in table.foreign_key_constraints
        for element in key.elements
        if element.parent.name != "organization_id" or len(key.elements) == 1
    )


_TENANCY = (
    Invariant("a row and what it refers to have one organization", _same_organization()),
    Invariant("what a row refers to exists", _parents_exist()),
)


def _anything_with(uuid: str) -> str:
    """Whether this id names a row of any table."""
    tables = [table.name for table in metadata.sorted_tables if "id" in table.c and isinstance(table.c.id.type, Uuid)]
    return " OR ".join(f"EXISTS (SELECT FROM {table} t WHERE t.id = {uuid})" for table in tables)


# A body that is no JSON has an invariant of its own.
_CREATED = """
    SELECT organization_id, route, CASE WHEN pg_input_is_valid(said, 'jsonb') THEN said::jsonb->>'id' END AS id
    FROM (SELECT *, convert_from(body, 'UTF8') AS said FROM idempotency_keys WHERE status = 201) kept"""

# The database refuses a second answer for a key; that the one there is tells the truth is left to see here.
_KEPT_ANSWERS = (
    Invariant(
        "a kept answer can be read",
        """
        SELECT organization_id, caller_id, route, status FROM idempotency_keys
        WHERE octet_length(body) > 0 AND NOT pg_input_is_valid(convert_from(body, 'UTF8'), 'jsonb')""",
    ),
    Invariant(
        "what a kept answer says was created exists",
        f"""
        SELECT organization_id, route, id FROM ({_CREATED}) made
        WHERE pg_input_is_valid(id, 'uuid') AND NOT ({_anything_with("made.id::uuid")})""",  # noqa: S608 - names of our own tables
    ),
    Invariant(
        "one kept answer alone created what it says",
        f"SELECT id, count(*) FROM ({_CREATED}) made WHERE id IS NOT NULL GROUP BY 1 HAVING count(*) > 1",  # noqa: S608 - our own words
    ),
)

INVARIANTS: tuple[Invariant, ...] = (
    *_GUARDS, *_ASSIGNMENTS, *_KEPT_ANSWERS, *_EVENTS, *_AUDIT_CHAIN, *_KEPT_AND_OWED, *_TENANCY, *_SIGN_INS,
)  # fmt: skip


class Checked(msgspec.Struct, frozen=True):
    """An invariant and up to `SHOWN` rows that break it."""

    invariant: Invariant
    rows: list[tuple[Any, ...]]


async def check_invariants(database: Database, *, quiet: bool) -> list[Checked]:
    """Ask every invariant of one state of the database; `quiet` adds those of what is to be done in good time.

    Read-only and without a lock that anybody waits for. On a large system it takes minutes: give it a Database whose
    statements may take that long.
    """
    snapshot = database.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    async with snapshot.connect() as connection, connection.begin():
        session = Session(connection)
        return [
            Checked(invariant, await _broken_by(session, invariant))
            for invariant in INVARIANTS
            if quiet or invariant.when == "always"
        ]


# Planned for all rows that a query finds, not for the first few of many: that plan would search for ever where, as it
# should be, there are none.
_FIRST_FEW = "WITH broken AS MATERIALIZED ({query}) SELECT * FROM broken LIMIT {most}"


async def _broken_by(session: Session, invariant: Invariant) -> list[tuple[Any, ...]]:
    statement = text(_FIRST_FEW.format(query=invariant.query, most=SHOWN))
    try:
        # A value that no query can read, such as a body that is no text, must not keep the others from being asked.
        async with session.connection.begin_nested():
            rows = await session.rows(statement)
    except DBAPIError as error:
        if is_outage(error):
            raise
        return [("cannot be asked", type(error.orig).__name__)]
    return [tuple(row) for row in rows]
