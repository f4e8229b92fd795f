"""Audit rows and chains, in the database and in memory; and somebody who may change anything in the database."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
from sqlalchemy import text

from activities.sealing import AuditSealer
from models.audit.chain import WHOLE, Range, Unsealed, organizations, verify, verify_unsealed
from models.audit.commands import record
from models.audit.export import Header, export, verify_file
from models.audit.rules import (
    NO_HASH,
    Entry,
    Personal,
    Row,
    Seal,
    Terms,
    commitment_of,
    encode,
    leaf_hash,
    merkle_root,
    seal_hash,
)
from models.audit.signing import Keys, SealingKey, keyring
from models.audit.verification import Chain, Finding, Kind
from models.kit.database import Actor, Database, Session
from models.kit.ids import new_id
from models.kit.settings import DEVELOPMENT_SECRET

KEY = SealingKey(DEVELOPMENT_SECRET)
KEYS = keyring(KEY.public)
#: Microseconds since 1970; any will do.
NOON = 1_770_000_000_000_000
SECOND = 1_000_000


def note(session: Session, organization_id: UUID | None, **metadata: Any) -> None:
    """Stage one row, as a command does."""
    metadata = metadata or {"from": "pending", "to": "assigned"}
    record(
        session, "THING_CHANGED", organization_id=organization_id, entity_type="thing", entity_id=new_id(), **metadata
    )


class Log:
    """An audit log: writes rows, seals them, and says what a verification finds."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.sealer = AuditSealer(database, KEY)

    async def write(self, organization_id: UUID | None, rows: int = 1) -> None:
        """So many rows, in one transaction."""
        async with self.database.transaction(Actor(kind="user", ip="192.0.2.7", request_id="request-1")) as session:
            for n in range(rows):
                note(session, organization_id, n=n)

    async def seal(self) -> int:
        """Seal all there is; the number of rows."""
        return await self.sealer.seal_all()

    async def findings(self, keys: Keys = KEYS, within: Range = WHOLE, kept: set[bytes] | None = None) -> list[Finding]:
        """Of all chains and of rows in none."""
        told: list[Any] = []
        for organization_id in await organizations(self.database):
            told += [found async for found in verify(self.database, organization_id, keys, within, kept)]
        if within.whole:
            told += [found async for found in verify_unsealed(self.database)]
        return [found for found in told if isinstance(found, Finding)]

    async def kinds(self) -> set[Kind]:
        return {finding.kind for finding in await self.findings()}

    async def chain(self, organization_id: UUID) -> Chain:
        """Its figures, once verified."""
        *findings, chain = [found async for found in verify(self.database, organization_id, KEYS)]
        assert findings == []
        assert isinstance(chain, Chain)
        return chain

    async def unsealed(self) -> Unsealed:
        *_, unsealed = [found async for found in verify_unsealed(self.database)]
        assert isinstance(unsealed, Unsealed)
        return unsealed

    async def numbers(self, organization_id: UUID) -> list[int]:
        """Those given in its chain, ascending."""
        rows = await self.all(
            "SELECT number FROM audit_leaves WHERE organization_id = :id ORDER BY number", id=organization_id
        )
        return [row.number for row in rows]

    async def all(self, sql: str, **values: Any) -> Sequence[Any]:
        async with self.database.transaction() as session:
            return await session.rows(text(sql), values)

    async def exported(self, organization_id: UUID, within: Range = WHOLE) -> bytes:
        return b"".join([lines async for lines in export(self.database, organization_id, KEYS, within)])


@asynccontextmanager
async def tampering(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of somebody who may do anything: no trigger fires."""
    connection = await asyncpg.connect(database_url.replace("+asyncpg", ""))
    try:
        await connection.execute("SET session_replication_role = replica")
        yield connection
    finally:
        await connection.close()


# In memory


def chain_of(organization_id: UUID, sizes: Iterable[int]) -> list[tuple[Seal, list[Row]]]:
    """Seals of so many rows each, a second apart."""
    chain: list[tuple[Seal, list[Row]]] = []
    number, previous_hash, now = 0, NO_HASH, NOON
    for size in sizes:
        rows = []
        for _ in range(size):
            number += 1
            entry = Entry(
                id=new_id(), organization_id=organization_id, user_id=None, actor_kind="system", action="THING_CHANGED",
                entity_type="thing", entity_id=new_id(), transaction_id=700 + number, created_at=now + number,
            )  # fmt: skip
            rows.append(row_of(number, entry, Personal(ip="192.0.2.7", metadata='{"n": 1}', request_id=None)))
        seal = seal_of(organization_id, rows, previous_hash, since=now, sealed_at=now + SECOND)
        previous_hash, now = seal.hash, now + SECOND
        chain.append((seal, rows))
    return chain


def row_of(number: int, entry: Entry, personal: Personal) -> Row:
    salt = new_id().hex
    commitment = commitment_of(personal, salt)
    return Row(
        number=number, entry=entry, personal=personal, salt=salt, commitment=commitment,
        hash=leaf_hash(entry, commitment),
    )  # fmt: skip


def seal_of(organization_id: UUID, rows: Sequence[Row], previous_hash: bytes, *, since: int, sealed_at: int) -> Seal:
    terms = Terms(
        organization_id=organization_id, first=rows[0].number, last=rows[-1].number,
        root=merkle_root(row.hash for row in rows), previous_hash=previous_hash, since=since, sealed_at=sealed_at,
        key_id=KEY.key_id,
    )  # fmt: skip
    hashed = seal_hash(terms)
    return Seal(terms=terms, hash=hashed, signature=KEY.sign(hashed))


def as_file(chain: Sequence[tuple[Seal, Sequence[Row]]]) -> list[bytes]:
    """Its lines, as the export writes them."""
    first, last = chain[0][0].terms, chain[-1][0]
    header = Header(
        organization_id=first.organization_id, first=first.first, last=last.terms.last, last_hash=last.hash,
        key_id=KEY.key_id, public_key=KEY.public.text,
    )  # fmt: skip
    items: list[msgspec.Struct] = [header]
    for seal, rows in chain:
        items += [seal, *rows]
    return [encode(item) + b"\n" for item in items]


def found_in(lines: Iterable[bytes], keys: Keys = KEYS) -> list[Finding]:
    """What a verification of a file with these lines finds."""
    told = verify_file(io.BytesIO(b"".join(lines)), keys)
    return [found for found in told if isinstance(found, Finding)]


async def until_cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
