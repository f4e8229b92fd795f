"""Going through what the lanes decided: is each decision in its place, unchanged, and what its own inputs give?"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy.engine import Row

from models.fairness.records import chain_hash, read_record, replays, verify_body
from models.fairness.rules import RULES
from models.kit.database import Database
from models.kit.sql import Sql

#: A decision over a thousand drivers has some 100 kB, so that one batch of them stays at a few MB.
BATCH = 50

_LANES = Sql("SELECT organization_id, last_number, last_hash FROM dispatch_lanes ORDER BY organization_id")

_NEXT = Sql("""
SELECT organization_id, number, work_order_id, driver_id, policy_id, rule_version, header, candidates, salts,
    body_hash, previous_hash, hash
FROM decisions
WHERE organization_id = :organization_id AND number > :after AND number <= :last
ORDER BY number LIMIT :limit
""")


class Fault(msgspec.Struct, frozen=True):
    """One decision that is not as it was made."""

    organization_id: UUID
    number: int
    what: str


class Walk(msgspec.Struct, frozen=True):
    """How many decisions were looked at, and the first faults among them."""

    decisions: int
    faults: list[Fault]


async def walk_lanes(database: Database, *, most: int = 5, batch: int = BATCH) -> Walk:
    """Every decision of every lane, made again from its inputs; gives up after `most` faults.

    In batches and without a transaction around them: decisions never change, and what is decided meanwhile lies beyond
    the number that each lane had at the start.
    """
    count, faults = 0, list[Fault]()
    async with database.reading() as session:
        lanes = await session.rows(_LANES)
    for lane in lanes:
        number, previous_hash = 0, b""
        while number < lane.last_number and len(faults) < most:
            place = {"organization_id": lane.organization_id, "after": number, "last": lane.last_number, "limit": batch}
            async with database.reading() as session:
                rows = await session.rows(_NEXT, place)
            for row in rows:
                what = _fault_of(row, number, previous_hash)
                if what is not None:
                    faults.append(Fault(row.organization_id, row.number, what))
                number, previous_hash = row.number, row.hash
            count += len(rows)
            if not rows:
                faults.append(Fault(lane.organization_id, number + 1, f"missing, the lane counts {lane.last_number}"))
                break
        else:
            if number == lane.last_number and previous_hash != lane.last_hash:
                faults.append(Fault(lane.organization_id, number, "not the hash that the lane ends with"))
    return Walk(count, faults[:most])


def _fault_of(row: Row[Any], number_before: int, hash_before: bytes) -> str | None:
    """What is wrong with the decision that follows the one of this number and hash. Pure."""
    if row.number != number_before + 1:
        return f"follows {number_before}"
    if row.previous_hash != hash_before:
        return "not chained to the one before"
    if row.hash != chain_hash(hash_before, row.number, row.body_hash):
        return "its hash is not that of its number and body"
    if row.header is None:
        # Older than the retention of bodies: the hashes are what is left.
        return None
    try:
        return _fault_of_body(row)
    except (msgspec.DecodeError, IndexError):
        return "its body cannot be read"


def _fault_of_body(row: Row[Any]) -> str | None:
    if not verify_body(row.header, row.candidates, row.salts, row.body_hash):
        return "its body is not the one that was hashed"
    header, candidates = read_record(row.header, row.candidates)
    said = (header.number, header.organization_id, header.work.work_order_id, header.policy_id, header.rule_version)
    if said != (row.number, str(row.organization_id), str(row.work_order_id), str(row.policy_id), row.rule_version):
        return "its columns are not what its body says"
    if header.rule_version not in RULES:
        return f"rule version {header.rule_version} is unknown here"
    if not replays(header, candidates):
        return "its inputs give another choice"
    chosen = candidates[header.order[0]].driver_id if header.chosen else None
    if chosen != (None if row.driver_id is None else str(row.driver_id)):
        return "its driver is not the one chosen"
    return None
