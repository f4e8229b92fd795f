"""Reading chains and their rows out of the database, some thousands at a time, and verifying them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from models.audit.rules import BEHIND_AFTER_S, NO_ORGANIZATION, Row, Seal, Terms, microseconds
from models.audit.sealing import entry_of, personal_of
from models.audit.signing import Keys
from models.audit.verification import LARGEST_SEAL, Chain, Finding, Kind
from models.kit.database import Database
from models.kit.sql import Sql

PAGE: Final = 5000
_BEGINNING: Final = datetime(1, 1, 1, tzinfo=UTC)
_END: Final = datetime(9999, 12, 31, tzinfo=UTC)
#: Chains begin at 1. A seal that somebody put below is one to look at as well.
_LOWEST_NUMBER: Final = -(2**62)
_HIGHEST_NUMBER: Final = 2**63 - 1

_ORGANIZATIONS = Sql("""
SELECT id FROM organizations
UNION SELECT organization_id FROM audit_seals UNION SELECT organization_id FROM audit_leaves
""")

# `greatest`: also a seal that was changed so that it ends before it begins is one to look at.
_BOUNDS = Sql("""
SELECT min(first_number) AS first, max(greatest(first_number, last_number)) AS last FROM audit_seals
WHERE organization_id = :organization AND last_number >= :first AND first_number <= :last
    AND sealed_at >= :since AND sealed_at < :until
""")

_SEALS = Sql("""
SELECT * FROM audit_seals
WHERE organization_id = :organization AND first_number > :after AND first_number <= :last
ORDER BY first_number LIMIT :at_most
""")

_LAST_SEAL = Sql("""
SELECT * FROM audit_seals WHERE organization_id = :organization AND first_number <= :last
ORDER BY first_number DESC LIMIT 1
""")

# LIMIT 1 keeps it a look-up of each row in its own partition, whatever the statistics say.
_ROWS = Sql("""
SELECT l.number, l.commitment, l.hash, a.id, a.organization_id, a.user_id, a.actor_kind, a.action, a.entity_type,
    a.entity_id, a.created_at, a.transaction_id, a.ip, CAST(a.metadata AS text) AS metadata, a.request_id, a.salt
FROM audit_leaves l
LEFT JOIN LATERAL (
    SELECT * FROM audit_log WHERE id = l.audit_id AND created_at = l.created_at LIMIT 1) a ON true
WHERE l.organization_id = :organization AND l.number > :after AND l.number <= :last
ORDER BY l.number LIMIT :at_most
""")

_UNDER_NO_SEAL = Sql("""
SELECT count(*) AS rows, min(number) AS first, max(number) AS last FROM audit_leaves
WHERE organization_id = :organization AND (number < 1 OR number > (
    SELECT coalesce(max(last_number), 0) FROM audit_seals WHERE organization_id = :organization))
""")

_WITHOUT_LEAF = Sql("""
WITH page AS MATERIALIZED (
    SELECT id, created_at, organization_id, transaction_id FROM audit_log
    WHERE (id, created_at) > (:id, :created_at) ORDER BY id, created_at LIMIT :at_most)
SELECT p.id, p.created_at, p.organization_id, l.created_at IS NOT DISTINCT FROM p.created_at AS sealed,
    l.created_at IS NOT NULL OR coalesce(p.transaction_id < s.horizon, false) AS passed,
    CAST(extract(epoch FROM clock_timestamp() - p.created_at) AS double precision) AS age_s
FROM page p
LEFT JOIN LATERAL (SELECT created_at FROM audit_leaves WHERE audit_id = p.id LIMIT 1) l ON true
LEFT JOIN (SELECT horizon FROM audit_sealer JOIN pg_control_system() here USING (system_identifier)) s ON true
ORDER BY p.id, p.created_at
""")


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """Seals with rows from number `first` to `last`, made at `since` or later and before `until`; always whole ones."""

    first: int = _LOWEST_NUMBER
    last: int = _HIGHEST_NUMBER
    since: datetime = _BEGINNING
    until: datetime = _END

    @property
    def whole(self) -> bool:
        return self == WHOLE


WHOLE: Final = Range()


class Unsealed(msgspec.Struct, frozen=True):
    """Rows that wait for their seal, and since when the oldest does, in seconds."""

    rows: int
    oldest_s: float


async def organizations(database: Database) -> list[UUID]:
    """All that have a chain or may have one."""
    async with database.reading() as session:
        found = {row.id for row in await session.rows(_ORGANIZATIONS)}
    return sorted({NO_ORGANIZATION, *found})


async def verify(
    database: Database, organization_id: UUID, keys: Keys, within: Range = WHOLE, kept: set[bytes] | None = None
) -> AsyncIterator[Finding | Chain]:
    """The findings about one chain, and at the end the chain itself with its figures."""
    chain = Chain(organization_id, keys, kept=kept)
    bounds = await _bounds(database, organization_id, within)
    if bounds is not None:
        first, last = bounds
        if not within.whole:
            chain = Chain(organization_id, keys, first=first, kept=kept)
        async for seal, rows in sealed(database, organization_id, first, last):
            for finding in chain.take(seal, rows):
                yield finding
    if within.whole:
        async with database.reading() as session:
            loose = await session.row(_UNDER_NO_SEAL, {"organization": organization_id})
        if loose is not None and loose.rows:
            yield chain.finding(Kind.INSERTED, f"numbers {loose.first} to {loose.last}: {loose.rows} under no seal")
    yield chain


async def verify_unsealed(database: Database, organization_id: UUID | None = None) -> AsyncIterator[Finding | Unsealed]:
    """The findings about rows that have no place in a chain, and at the end how many wait for theirs."""
    waiting, oldest = 0, 0.0
    place: tuple[UUID, datetime] = (UUID(int=0), _BEGINNING)
    while True:
        async with database.reading() as session:
            page = await session.rows(_WITHOUT_LEAF, {"id": place[0], "created_at": place[1], "at_most": PAGE})
        for row in page:
            chain = row.organization_id or NO_ORGANIZATION
            if row.sealed or organization_id not in (None, chain):
                continue
            if row.passed:
                yield Finding(
                    Kind.INSERTED,
                    f"row {row.id} has no place in the chain, and the sealer had passed its transaction",
                    chain,
                )
            else:
                waiting, oldest = waiting + 1, max(oldest, row.age_s)
        if len(page) < PAGE:
            break
        place = page[-1].id, page[-1].created_at
    if oldest > BEHIND_AFTER_S:
        yield Finding(Kind.NOT_SEALED, f"{waiting} rows wait, the oldest for {oldest:.0f} s")
    yield Unsealed(waiting, oldest)


async def last_seal(database: Database, organization_id: UUID, within: Range) -> tuple[int, Seal] | None:
    """The number that the range begins with, being its first whole seal's, and its last seal. None without any."""
    bounds = await _bounds(database, organization_id, within)
    if bounds is None:
        return None
    async with database.reading() as session:
        row = await session.row(_LAST_SEAL, {"organization": organization_id, "last": bounds[1]})
    return None if row is None else (bounds[0], _seal(row))


async def sealed(
    database: Database, organization_id: UUID, first: int, last: int
) -> AsyncIterator[tuple[Seal, list[Row]]]:
    """The seals from number `first` to `last`, each with the rows that have its numbers."""
    rows = _rows(database, organization_id, first, last)
    row = await anext(rows, None)
    async for seal in _seals(database, organization_id, first, last):
        taken: list[Row] = []
        while row is not None and row.number <= seal.terms.last and len(taken) < LARGEST_SEAL:
            taken.append(row)
            row = await anext(rows, None)
        yield seal, taken


async def _bounds(database: Database, organization_id: UUID, within: Range) -> tuple[int, int] | None:
    values = msgspec.structs.asdict(within) | {"organization": organization_id}
    async with database.reading() as session:
        row = await session.row(_BOUNDS, values)
    return None if row is None or row.first is None else (row.first, row.last)


async def _seals(database: Database, organization_id: UUID, first: int, last: int) -> AsyncIterator[Seal]:
    after = first - 1
    while True:
        values = {"organization": organization_id, "after": after, "last": last, "at_most": PAGE}
        async with database.reading() as session:
            page = await session.rows(_SEALS, values)
        for row in page:
            yield _seal(row)
        if len(page) < PAGE:
            return
        after = page[-1].first_number


async def _rows(database: Database, organization_id: UUID, first: int, last: int) -> AsyncIterator[Row]:
    after = first - 1
    while True:
        values = {"organization": organization_id, "after": after, "last": last, "at_most": PAGE}
        async with database.reading() as session:
            page = await session.rows(_ROWS, values)
        for row in page:
            yield _row(row)
        if len(page) < PAGE:
            return
        after = page[-1].number


def _seal(row: Any) -> Seal:
    terms = Terms(
        organization_id=row.organization_id,
        first=row.first_number,
        last=row.last_number,
        root=row.root,
        previous_hash=row.previous_hash,
        since=microseconds(row.since),
        sealed_at=microseconds(row.sealed_at),
        key_id=row.key_id,
    )
    return Seal(terms=terms, hash=row.hash, signature=row.signature)


def _row(row: Any) -> Row:
    there = row.id is not None
    return Row(
        number=row.number,
        entry=entry_of(row) if there else None,
        personal=personal_of(row) if there else None,
        salt=row.salt if there else "",
        commitment=row.commitment,
        hash=row.hash,
    )
