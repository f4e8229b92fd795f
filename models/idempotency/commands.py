"""Claiming a key, keeping the answer under it, and forgetting both."""

from __future__ import annotations

from typing import Final

import msgspec

from models.idempotency.rules import (
    KEPT_HOURS,
    IdempotencyInProgress,
    IdempotencyKeyReused,
    KeptAnswer,
    KeyedRequest,
)
from models.idempotency.tables import idempotency_keys
from models.kit.database import Session
from models.kit.sql import Sql

#: The constraint that an answer breaks when another was kept under its key first.
TAKEN: Final = "pk_idempotency_keys"

# One round trip for both. The lock only says whether to wait: that there is one answer is the primary key's doing.
_CLAIM = Sql("""
SELECT pg_try_advisory_xact_lock(:lock) AS is_ours, k.fingerprint, k.status, CAST(k.headers AS text) AS headers, k.body
FROM (VALUES (1)) AS one
LEFT JOIN idempotency_keys k ON k.organization_id = :organization_id AND k.caller_id = :caller_id
    AND k.method = :method AND k.route = :route AND k.key = :key
""")

_REPLACE = Sql("""
UPDATE idempotency_keys SET status = :status, headers = :headers, body = :body
WHERE organization_id = :organization_id AND caller_id = :caller_id AND method = :method AND route = :route
    AND key = :key
""")

# Not `clock_timestamp()`, which is another one for every row: then no index would be of use.
_DELETE_OLD = Sql("""
DELETE FROM idempotency_keys WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM idempotency_keys WHERE created_at < statement_timestamp() - make_interval(hours => :hours)
    ORDER BY created_at LIMIT :limit
))
""")


async def claim(session: Session, request: KeyedRequest) -> KeptAnswer | None:
    """The answer kept for this request. None if there is none yet: then the key is this transaction's until its end.
    Raises IdempotencyKeyReused, and IdempotencyInProgress where another transaction has the key."""
    row = await session.row(
        _CLAIM,
        {
            "lock": request.lock,
            "organization_id": request.organization_id,
            "caller_id": request.caller_id,
            "method": request.method,
            "route": request.route,
            "key": request.key,
        },
    )
    assert row is not None
    if row.fingerprint is None:
        if not row.is_ours:
            raise IdempotencyInProgress()
        return None
    if row.fingerprint != request.fingerprint:
        raise IdempotencyKeyReused()
    return KeptAnswer(
        status=row.status, headers=msgspec.json.decode(row.headers, type=list[tuple[str, str]]), body=row.body
    )


def keep(session: Session, request: KeyedRequest, answer: KeptAnswer) -> None:
    """Keep the answer, with the commit of what it tells of. The commit breaks `TAKEN` if another answer was kept
    between the snapshot of `claim` and its lock."""
    session.stage(idempotency_keys, **msgspec.structs.asdict(request), **msgspec.structs.asdict(answer))


async def replace(session: Session, request: KeyedRequest, answer: KeptAnswer) -> None:
    """Keep this answer instead of the one that is kept."""
    await session.run(
        _REPLACE,
        msgspec.structs.asdict(request)
        | {"status": answer.status, "headers": msgspec.json.encode(answer.headers).decode(), "body": answer.body},
    )


async def delete_old(session: Session, *, limit: int) -> int:
    """Forget up to `limit` keys after their time, by the database's clock. Their number."""
    return await session.run(_DELETE_OLD, {"hours": KEPT_HOURS, "limit": limit})
