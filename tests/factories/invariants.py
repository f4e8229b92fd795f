"""The door of the tests to models/invariants.py: what must hold in every database at every commit."""

from __future__ import annotations

from typing import Any

from models.fairness.chain import walk_lanes
from models.invariants import check_invariants
from models.kit.database import Database


async def broken(database: Database, *, quiet: bool = False) -> dict[str, list[tuple[Any, ...]]]:
    """The invariants that do not hold, each with up to five rows that show it; `quiet` where senders have run."""
    checked = await check_invariants(database, quiet=quiet)
    return {one.invariant.name: one.rows for one in checked if one.rows}


async def check(database: Database, *, quiet: bool = False) -> None:
    assert await broken(database, quiet=quiet) == {}


async def check_decisions(database: Database) -> int:
    """Every recorded decision follows from its inputs, and each lane's chain has no gap and no break. Their number."""
    walk = await walk_lanes(database)
    assert walk.faults == []
    return walk.decisions
