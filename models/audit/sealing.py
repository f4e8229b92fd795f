"""Sealing: the rows of transactions that have all ended get their numbers, and each organization's batch a seal.

Writers take no lock that is taken here, and audit rows are only read. Whoever seals holds one advisory lock until the
transaction's end, which also a PgBouncer can carry.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, Final
from uuid import UUID

import msgspec

from models.audit.rules import (
    NO_HASH,
    NO_ORGANIZATION,
    Entry,
    Personal,
    Seal,
    Terms,
    commitment_of,
    instant,
    leaf_hash,
    merkle_root,
    microseconds,
    seal_hash,
)
from models.audit.signing import SealingKey
from models.kit.database import Session
from models.kit.sql import Sql

ADVISORY_LOCK: Final = 0x0FA1_71EA_D001
#: Rows sealed in one transaction. It keeps the process from other work for some hundredths of a second.
BATCH: Final = 1000
_HIGHEST_TRANSACTION: Final = 2**64 - 1

# Not EXISTS: with statistics that lag behind, the planner would at times rather read all leaves than look up a few.
_HAS_LEAF: Final = "(SELECT true FROM audit_leaves l WHERE l.audit_id = a.id)"

_LOOK = Sql(f"""
SELECT s.id IS NULL OR s.system_identifier <> here.system_identifier OR EXISTS (
    SELECT FROM audit_log a
    WHERE a.transaction_id >= s.horizon AND a.transaction_id < pg_snapshot_xmin(pg_current_snapshot())
        AND {_HAS_LEAF} IS NULL)
FROM pg_control_system() here LEFT JOIN audit_sealer s ON s.id = 1
""")  # noqa: S608 - our own words

_LOCK = Sql("SELECT pg_try_advisory_xact_lock(:key)")

_STATE = Sql("""
SELECT pg_snapshot_xmin(pg_current_snapshot()) AS oldest_running, statement_timestamp() AS now,
    here.system_identifier, s.horizon, s.complete_at,
    s.system_identifier IS NOT DISTINCT FROM here.system_identifier AS same_cluster
FROM pg_control_system() here LEFT JOIN audit_sealer s ON s.id = 1
""")

_UNSEALED = Sql(f"""
SELECT a.id, a.organization_id, a.user_id, a.actor_kind, a.action, a.entity_type, a.entity_id, a.created_at,
    a.transaction_id, a.ip, CAST(a.metadata AS text) AS metadata, a.request_id, a.salt
FROM audit_log a
WHERE a.transaction_id >= :start AND a.transaction_id < :until AND {_HAS_LEAF} IS NULL
ORDER BY a.transaction_id LIMIT :at_most
""")  # noqa: S608 - our own words

_LAST_SEALS = Sql("""
SELECT o.id AS organization_id, s.last_number, s.hash
FROM unnest(CAST(:organizations AS uuid[])) o (id)
CROSS JOIN LATERAL (
    SELECT last_number, hash FROM audit_seals WHERE organization_id = o.id ORDER BY first_number DESC LIMIT 1) s
""")

_WRITE = Sql("""
WITH leaves AS (
    INSERT INTO audit_leaves (audit_id, organization_id, number, created_at, commitment, hash)
    SELECT * FROM unnest(
        CAST(:ids AS uuid[]), CAST(:organizations AS uuid[]), CAST(:numbers AS bigint[]),
        CAST(:dates AS timestamptz[]), CAST(:commitments AS bytea[]), CAST(:hashes AS bytea[]))
)
INSERT INTO audit_seals (organization_id, first_number, last_number, root, previous_hash, since, sealed_at, key_id,
    hash, signature)
SELECT * FROM unnest(
    CAST(:sealed AS uuid[]), CAST(:firsts AS bigint[]), CAST(:lasts AS bigint[]), CAST(:roots AS bytea[]),
    CAST(:previous AS bytea[]), CAST(:sinces AS timestamptz[]), CAST(:sealed_at AS timestamptz[]),
    CAST(:key_ids AS text[]), CAST(:seal_hashes AS bytea[]), CAST(:signatures AS bytea[]))
""")

_ADVANCE = Sql("""
INSERT INTO audit_sealer (id, system_identifier, horizon, complete_at)
VALUES (1, :system_identifier, :horizon, :complete_at)
ON CONFLICT (id) DO UPDATE SET system_identifier = excluded.system_identifier, horizon = excluded.horizon,
    complete_at = excluded.complete_at
""")


class FullLook(msgspec.Struct, frozen=True):
    """A look at all rows, in a cluster that is not the sealer's own: how far it is, by transaction id, and the oldest
    transaction that was running when it began. What commits later is above that, and found in the usual way."""

    position: int
    oldest_running: int
    began: datetime


class Sealed(msgspec.Struct, frozen=True):
    """What one batch did: `rows` sealed, and whether there may be `more` to do at once, which needs `look`."""

    rows: int = 0
    more: bool = False
    look: FullLook | None = None


async def something_to_seal(session: Session) -> bool:
    """One indexed statement, which is all that an idle sealer costs."""
    return bool(await session.value(_LOOK))


async def seal_batch(
    session: Session, key: SealingKey, *, at_most: int = BATCH, look: FullLook | None = None
) -> Sealed:
    """Seal up to `at_most` rows in this transaction. Nothing when another sealer is at it."""
    if not await session.value(_LOCK, {"key": ADVISORY_LOCK}):
        return Sealed()
    state = await session.row(_STATE)
    assert state is not None
    if state.same_cluster:
        look, start, until = None, state.horizon, state.oldest_running
    else:
        # Transaction ids are those of another cluster. All rows that can be seen are committed.
        look = look or FullLook(0, state.oldest_running, state.now)
        start, until = look.position, _HIGHEST_TRANSACTION
    found = await session.rows(_UNSEALED, {"start": start, "until": until, "at_most": at_most})
    more = len(found) == at_most
    if found:
        since = instant(0) if state.complete_at is None else state.complete_at
        await _write(session, key, found, since=since, now=state.now)
    if more and look is not None:
        return Sealed(len(found), more, msgspec.structs.replace(look, position=found[-1].transaction_id))
    if more:
        # A batch that was cut at its limit leaves rows behind, as old as they may be.
        horizon, complete_at = found[-1].transaction_id, state.complete_at
    elif look is None:
        horizon, complete_at = state.oldest_running, state.now
    else:
        horizon, complete_at = look.oldest_running, look.began
    advanced = {"system_identifier": state.system_identifier, "horizon": horizon, "complete_at": complete_at}
    await session.run(_ADVANCE, advanced)
    return Sealed(len(found), more)


async def _write(session: Session, key: SealingKey, found: Sequence[Any], *, since: datetime, now: datetime) -> None:
    chains = _chains(found)
    last = {
        row.organization_id: (row.last_number, row.hash)
        for row in await session.rows(_LAST_SEALS, {"organizations": list(chains)})
    }
    leaves: list[tuple[UUID, UUID, int, datetime, bytes, bytes]] = []
    seals: list[Seal] = []
    for organization_id, rows in chains.items():
        number, previous_hash = last.get(organization_id, (0, NO_HASH))
        first = number + 1
        hashes: list[bytes] = []
        for number, row in enumerate(rows, first):
            commitment = commitment_of(personal_of(row), row.salt)
            hashes.append(leaf_hash(entry_of(row), commitment))
            leaves.append((row.id, organization_id, number, row.created_at, commitment, hashes[-1]))
        terms = Terms(
            organization_id=organization_id,
            first=first,
            last=number,
            root=merkle_root(hashes),
            previous_hash=previous_hash,
            since=microseconds(since),
            sealed_at=microseconds(now),
            key_id=key.key_id,
        )
        hashed = seal_hash(terms)
        seals.append(Seal(terms=terms, hash=hashed, signature=key.sign(hashed)))
    await session.run(_WRITE, _columns(leaves) | _seal_columns(seals, since, now))


def _chains(found: Iterable[Any]) -> dict[UUID, list[Any]]:
    """The rows of each organization, by id. Of rows with the same id, which only tampering makes, one is taken; the
    others keep without a leaf, where a verification finds them."""
    by_chain = sorted(found, key=lambda row: (row.organization_id or NO_ORGANIZATION, row.id, row.created_at))
    chains: dict[UUID, list[Any]] = {}
    taken: set[UUID] = set()
    for organization_id, rows in groupby(by_chain, key=lambda row: row.organization_id or NO_ORGANIZATION):
        for row in rows:
            if row.id not in taken:
                taken.add(row.id)
                chains.setdefault(organization_id, []).append(row)
    return chains


def _columns(leaves: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    names = ("ids", "organizations", "numbers", "dates", "commitments", "hashes")
    return dict(zip(names, map(list, zip(*leaves, strict=True)), strict=True))


def _seal_columns(seals: Sequence[Seal], since: datetime, now: datetime) -> dict[str, Any]:
    return {
        "sealed": [seal.terms.organization_id for seal in seals],
        "firsts": [seal.terms.first for seal in seals],
        "lasts": [seal.terms.last for seal in seals],
        "roots": [seal.terms.root for seal in seals],
        "previous": [seal.terms.previous_hash for seal in seals],
        "sinces": [since] * len(seals),
        "sealed_at": [now] * len(seals),
        "key_ids": [seal.terms.key_id for seal in seals],
        "seal_hashes": [seal.hash for seal in seals],
        "signatures": [seal.signature for seal in seals],
    }


def entry_of(row: Any) -> Entry:
    """From a row of `audit_log`."""
    return Entry(
        id=row.id,
        organization_id=row.organization_id,
        user_id=row.user_id,
        actor_kind=row.actor_kind,
        action=row.action,
        entity_type=row.entity_type,
        entity_id=row.entity_id,
        transaction_id=row.transaction_id,
        created_at=microseconds(row.created_at),
    )


def personal_of(row: Any) -> Personal:
    """From a row of `audit_log` with its metadata as text."""
    return Personal(ip=row.ip, metadata=row.metadata, request_id=row.request_id)
