"""Somebody with all rights in the database changes it, one thing at a time: a verification finds each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from models.audit.chain import Range
from models.audit.signing import SealingKey, keyring
from models.audit.tables import audit_leaves, audit_log, audit_seals
from models.audit.verification import Finding, Kind
from tests.audit.factories import KEY, KEYS, Log, found_in, tampering
from tests.factories.people import People

pytestmark = pytest.mark.anyio

TABLES = ("audit_log", "audit_leaves", "audit_seals", "audit_sealer")


class Tampered:
    """A log of two organizations and of rows without one, under several seals each, that can be put back."""

    def __init__(self, log: Log, connection: asyncpg.Connection, organization_id: UUID) -> None:
        self.log = log
        self.connection = connection
        self.organization_id = organization_id

    async def save(self) -> None:
        for table in TABLES:
            await self.connection.execute(f"CREATE TABLE saved_{table} AS TABLE {table}")

    async def restore(self) -> None:
        for table in TABLES:
            await self.connection.execute(f"DELETE FROM {table}")
            await self.connection.execute(f"INSERT INTO {table} SELECT * FROM saved_{table}")

    async def findings(self, *statements: str) -> list[Finding]:
        """What is found after these statements; $1 is the organization. All is as before afterwards."""
        for statement in statements:
            await self.run(statement)
        found = await self.log.findings()
        await self.restore()
        return found

    async def run(self, statement: str) -> None:
        values = [self.organization_id] if "$1" in statement else []
        status = await self.connection.execute(statement, *values)
        assert not status.endswith(" 0"), "it changed nothing"

    async def kinds(self, *statements: str) -> set[Kind]:
        return {finding.kind for finding in await self.findings(*statements)}


@pytest.fixture
async def tampered(log: Log, database_url: str) -> AsyncIterator[Tampered]:
    people = People(log.database)
    ours, theirs = await people.organization(), await people.organization()
    for _ in range(4):
        await log.write(ours, 5)
        await log.write(theirs, 2)
        await log.write(None)
        await log.seal()
    async with tampering(database_url) as connection:
        made = Tampered(log, connection, ours)
        await made.save()
        yield made


#: Another value, by the type of a column.
CHANGES = {
    "uuid": "gen_random_uuid()",
    "text": "coalesce({column}, '') || 'x'",
    "jsonb": "{column} || '{{\"n\": 99}}'",
    "xid8": "'7'",
    "timestamp with time zone": "{column} + interval '1 us'",
    "bigint": "{column} + 1000",
    "bytea": "set_byte({column}, 3, get_byte({column}, 3) # 1)",
}


@pytest.mark.parametrize(("table", "which"), [(audit_log, "id"), (audit_leaves, "audit_id"), (audit_seals, "root")])
async def test_a_change_of_any_column_of_any_row_is_found(tampered: Tampered, table: Any, which: str) -> None:
    missed: list[tuple[str, object]] = []
    rows = await tampered.connection.fetch(
        f"SELECT {which} AS key FROM {table.name} ORDER BY md5({which}::text) LIMIT 5"
    )
    types = dict(
        await tampered.connection.fetch(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = $1", table.name
        )
    )
    assert set(types) == {column.name for column in table.columns}
    for column, kind in types.items():
        if column == "actor_kind":
            change = "CASE actor_kind WHEN 'user' THEN 'system' ELSE 'user' END"
        else:
            change = CHANGES[kind].format(column=column)
        for row in rows:
            statement = f"UPDATE {table.name} SET {column} = {change} WHERE {which} = $1"
            assert await tampered.connection.execute(statement, row["key"]) == "UPDATE 1"
            if not await tampered.log.findings():
                missed.append((column, row["key"]))
            await tampered.restore()
    assert missed == []
    assert await tampered.findings() == []


@pytest.mark.parametrize("table", [audit_log, audit_leaves, audit_seals])
async def test_the_removal_of_any_row_is_found(tampered: Tampered, table: Any) -> None:
    key = "root" if table is audit_seals else table.columns[0].name
    for row in await tampered.connection.fetch(f"SELECT {key} AS key FROM {table.name}"):
        assert await tampered.connection.execute(f"DELETE FROM {table.name} WHERE {key} = $1", row["key"]) == "DELETE 1"
        found = {finding.kind for finding in await tampered.log.findings()}
        assert found & {Kind.REMOVED, Kind.INSERTED}, row["key"]
        await tampered.restore()


async def test_what_happened_is_said(tampered: Tampered) -> None:
    kinds = tampered.kinds
    sixth = "(SELECT audit_id FROM audit_leaves WHERE organization_id = $1 AND number = 6)"
    assert await kinds() == set()
    assert await kinds(f"UPDATE audit_log SET action = 'OTHER' WHERE id = {sixth}") == {Kind.CHANGED}
    assert await kinds(f"UPDATE audit_log SET ip = '192.0.2.8' WHERE id = {sixth}") == {Kind.CHANGED}
    assert await kinds(f"DELETE FROM audit_log WHERE id = {sixth}") == {Kind.REMOVED}
    assert await kinds(
        f"DELETE FROM audit_log WHERE id = {sixth}",
        "DELETE FROM audit_leaves WHERE organization_id = $1 AND number = 6",
    ) == {Kind.REMOVED}
    assert await kinds("DELETE FROM audit_seals WHERE organization_id = $1 AND first_number = 1") == {
        Kind.REMOVED, Kind.BROKEN_CHAIN,
    }  # fmt: skip
    assert await kinds(
        "UPDATE audit_seals SET signature = (SELECT signature FROM audit_seals"
        " WHERE organization_id = $1 AND first_number = 1) WHERE organization_id = $1 AND first_number > 1"
    ) == {Kind.BAD_SIGNATURE}


async def test_rows_that_change_places_are_found(tampered: Tampered) -> None:
    """Within a seal, and across seals; and all numbers moved up by one."""
    swap = (
        "UPDATE audit_leaves SET number = CASE number WHEN {0} THEN -{1} ELSE -{0} END"
        " WHERE organization_id = $1 AND number IN ({0}, {1})"
    )
    back = "UPDATE audit_leaves SET number = -number WHERE organization_id = $1 AND number < 0"
    (seal,) = await tampered.log.all(
        "SELECT min(first_number) AS first FROM audit_seals"
        " WHERE organization_id = :id AND last_number > first_number + 3",
        id=tampered.organization_id,
    )
    within = await tampered.kinds(swap.format(seal.first + 1, seal.first + 3), back)
    assert within >= {Kind.REORDERED, Kind.CHANGED}
    assert Kind.CHANGED in await tampered.kinds(swap.format(2, 15), back)
    assert await tampered.findings(
        "UPDATE audit_leaves SET number = -number - 1 WHERE organization_id = $1", back,
    ) != []  # fmt: skip


async def test_seals_that_change_places_are_found(tampered: Tampered) -> None:
    swapped = (
        "UPDATE audit_seals s SET (root, previous_hash, hash, signature, sealed_at, since) = (SELECT root,"
        " previous_hash, hash, signature, sealed_at, since FROM audit_seals o WHERE o.organization_id = $1"
        " AND o.first_number <> s.first_number AND o.last_number IN"
        " (SELECT max(last_number) FROM audit_seals WHERE organization_id = $1"
        "  UNION ALL SELECT min(last_number) FROM audit_seals WHERE organization_id = $1))"
        " WHERE organization_id = $1 AND last_number IN (SELECT max(last_number) FROM audit_seals"
        " WHERE organization_id = $1 UNION ALL SELECT min(last_number) FROM audit_seals WHERE organization_id = $1)"
    )
    assert await tampered.kinds(swapped) >= {Kind.CHANGED, Kind.BROKEN_CHAIN}
    assert await tampered.findings(
        "UPDATE audit_seals SET organization_id = '00000000-0000-0000-0000-000000000000',"
        " first_number = 100 + first_number WHERE organization_id = $1"
    )


INSERT = (
    "INSERT INTO audit_log (organization_id, actor_kind, action, entity_type, entity_id, created_at, transaction_id)"
    " VALUES ($1, 'system', 'FORGED', 'thing', gen_random_uuid(), {created_at}, {transaction_id})"
)


async def test_a_row_slipped_in_behind_the_sealer_is_found(tampered: Tampered) -> None:
    """Its transaction id says that the sealer has passed it, so it never gets a seal."""
    await tampered.run(INSERT.format(created_at="now()", transaction_id="'700'"))
    assert await tampered.log.seal() == 0
    assert await tampered.log.kinds() == {Kind.INSERTED}


async def test_a_row_from_a_transaction_to_come_is_found_once_it_waits_too_long(tampered: Tampered) -> None:
    await tampered.run(INSERT.format(created_at="now() - interval '61 s'", transaction_id="'999999999'"))
    assert await tampered.log.seal() == 0
    assert await tampered.log.kinds() == {Kind.NOT_SEALED}


@pytest.mark.parametrize("created_at", ["now() - interval '1 day'", "now() + interval '1 day'"])
async def test_a_row_that_is_sealed_but_dated_elsewhere_is_found(tampered: Tampered, created_at: str) -> None:
    await tampered.run(INSERT.format(created_at=created_at, transaction_id="pg_current_xact_id()"))
    assert await tampered.log.seal() == 1
    assert await tampered.log.kinds() == {Kind.BACKDATED}


async def test_a_chain_rewritten_from_scratch_is_signed_by_another_key(tampered: Tampered) -> None:
    """Whoever has the database but not the key can only sign by a key of their own."""
    for table in ("audit_leaves", "audit_seals", "audit_sealer"):
        await tampered.connection.execute(f"DELETE FROM {table}")
    await tampered.run("DELETE FROM audit_log WHERE organization_id = $1")
    tampered.log.sealer.key = SealingKey("another secret of more than 32 characters")
    await tampered.log.seal()
    assert await tampered.log.kinds() == {Kind.BAD_SIGNATURE}


async def test_a_chain_cut_short_is_found_by_a_hash_that_was_kept(tampered: Tampered) -> None:
    """Rows, places and seals at the end, all gone: only what somebody noted elsewhere tells."""
    noted = (await tampered.log.chain(tampered.organization_id)).last_hash
    assert noted is not None
    kept = {noted}
    assert await tampered.log.findings(kept=kept) == []
    assert kept == set(), "it was met"
    last = "(SELECT max(first_number) FROM audit_seals WHERE organization_id = $1)"
    without_place = "NOT EXISTS (SELECT FROM audit_leaves WHERE audit_id = audit_log.id)"
    await tampered.run(f"DELETE FROM audit_leaves WHERE organization_id = $1 AND number >= {last}")
    await tampered.run(f"DELETE FROM audit_log WHERE organization_id = $1 AND {without_place}")
    await tampered.run(f"DELETE FROM audit_seals WHERE organization_id = $1 AND first_number = {last}")
    kept = {noted}
    assert await tampered.log.findings(kept=kept) == []
    assert kept == {noted}


async def test_seals_of_an_earlier_key_need_its_public_key(log: Log, organization_id: UUID) -> None:
    """SECRET_KEY was changed."""
    newer = SealingKey("another secret of more than 32 characters")
    log.sealer.key = newer
    await log.write(organization_id)
    await log.seal()
    assert {finding.kind for finding in await log.findings(keyring(newer.public))} == {Kind.BAD_SIGNATURE}
    assert await log.findings(keyring(newer.public, KEY.public)) == []


async def test_erased_values_do_not_break_the_chain(tampered: Tampered) -> None:
    erase = "UPDATE audit_log SET metadata = '{}', ip = NULL, request_id = NULL, salt = '' WHERE organization_id = $1"
    await tampered.run(erase)
    assert await tampered.log.findings() == []
    chain = await tampered.log.chain(tampered.organization_id)
    assert chain.erased == chain.rows > 20
    lines = await tampered.log.exported(tampered.organization_id)
    assert b"192.0.2.7" not in lines
    assert found_in([lines]) == []
    assert await tampered.kinds(erase, erase.replace("'{}'", '\'{"to": "completed"}\'')) == {Kind.CHANGED}


# A part of a chain, and files


async def seals_of(tampered: Tampered) -> Sequence[Any]:
    return await tampered.log.all(
        "SELECT * FROM audit_seals WHERE organization_id = :id ORDER BY first_number", id=tampered.organization_id
    )


async def test_a_part_of_a_chain_is_verified_in_whole_seals(tampered: Tampered) -> None:
    log, seals = tampered.log, await seals_of(tampered)
    second, third = seals[1], seals[2]
    await tampered.run(
        "UPDATE audit_log SET action = 'OTHER' WHERE id ="
        f" (SELECT audit_id FROM audit_leaves WHERE organization_id = $1 AND number = {third.last_number})"
    )

    async def found(**within: Any) -> list[str]:
        return [finding.text for finding in await log.findings(within=Range(**within))]

    assert await found(first=second.first_number, last=second.last_number) == []
    assert len(await found(first=third.first_number, last=third.first_number)) == 1, "the whole seal is verified"
    assert len(await found(first=third.last_number)) == 1
    assert await found(first=third.last_number + 1) == []
    assert await found(until=third.sealed_at) == []
    assert len(await found(since=third.sealed_at)) == 1
    assert await found(since=seals[3].sealed_at) == []
    assert await found(first=10**9) == []


async def test_an_export_is_the_same_each_time_and_verifies_by_itself(tampered: Tampered) -> None:
    log, seals = tampered.log, await seals_of(tampered)
    whole = await log.exported(tampered.organization_id)
    assert whole == await log.exported(tampered.organization_id)
    assert found_in([whole]) == []
    assert b"192.0.2.7" in whole
    part = await log.exported(tampered.organization_id, Range(first=seals[2].last_number))
    assert found_in([part]) == []
    assert whole.endswith(part.split(b"\n", 1)[1])
    other = keyring(SealingKey("another secret of more than 32 characters").public)
    assert {finding.kind for finding in found_in([whole], other)} == {Kind.BAD_SIGNATURE}


async def test_an_export_of_a_tampered_log_shows_it(tampered: Tampered) -> None:
    await tampered.run(
        "DELETE FROM audit_log WHERE id = (SELECT audit_id FROM audit_leaves WHERE organization_id = $1 AND number = 9)"
    )
    assert {f.kind for f in found_in([await tampered.log.exported(tampered.organization_id)])} == {Kind.REMOVED}


async def test_a_file_cut_short_or_edited_is_found(tampered: Tampered) -> None:
    whole = await tampered.log.exported(tampered.organization_id)
    lines = whole.splitlines(keepends=True)
    edits: dict[str, Callable[[], list[bytes]]] = {
        "cut in a line": lambda: [whole[: len(whole) // 2]],
        "cut at the last seal": lambda: lines[: max(i for i, line in enumerate(lines) if b'"type":"seal"' in line)],
        "another address": lambda: [whole.replace(b"192.0.2.7", b"192.0.2.8", 1)],
        "another action": lambda: [whole.replace(b"THING_CHANGED", b"THING_REMOVED", 1)],
        "another space": lambda: [whole.replace(b'"number":7', b'"number": 7', 1)],
        "the header's key": lambda: [whole.replace(KEY.public.text.encode(), b"A" * 43, 1)],
        "the header's organization": lambda: [whole.replace(str(tampered.organization_id).encode(), b"0" * 8, 1)],
        "no header": lambda: lines[1:],
    }
    for name, edit in edits.items():
        assert edit() not in ([whole], lines), name
        assert found_in(edit(), KEYS) != [], name
