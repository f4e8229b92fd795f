"""References people can read (`EN-1042`), unique per organization and prefix, allotted in blocks: gaps are normal."""

from __future__ import annotations

from functools import partial
from uuid import UUID

from models.kit.database import Session
from models.kit.sql import Sql

BLOCK = 50
FIRST = 1001

_TAKE_BLOCK = Sql("""
INSERT INTO reference_counters (organization_id, prefix, next_number)
VALUES (:organization_id, :prefix, CAST(:first AS bigint) + CAST(:block AS bigint))
ON CONFLICT (organization_id, prefix) DO UPDATE SET next_number = reference_counters.next_number + :block
RETURNING next_number - :block
""")

#: What is left of this process's blocks. A number enters only after the commit that took its block.
_left: dict[tuple[int, UUID, str], list[int]] = {}


async def next_reference(session: Session, organization_id: UUID, prefix: str) -> str:
    """The next reference; mostly without a query."""
    key = (id(session.connection.engine), organization_id, prefix)
    left = _left.setdefault(key, [])
    if left:
        return f"{prefix}-{left.pop()}"
    taken = f"references {prefix} {organization_id}"
    mine: list[int] | None = session.scratch.get(taken)
    if mine is None:
        mine = session.scratch[taken] = []
        session.after_commit(partial(left.extend, mine))
    if not mine:
        first: int = await session.value(
            _TAKE_BLOCK, {"organization_id": organization_id, "prefix": prefix, "first": FIRST, "block": BLOCK}
        )
        mine.extend(range(first + BLOCK - 1, first - 1, -1))
    return f"{prefix}-{mine.pop()}"
