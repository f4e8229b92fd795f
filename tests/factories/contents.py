"""All that a database holds, to see that something left no trace."""

from __future__ import annotations

from sqlalchemy import text

from models.kit.database import Database

_TABLES = text("""
SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY 1
""")


async def contents(database: Database) -> dict[str, tuple[int, str]]:
    """For each table the number of its rows and a digest of everything in them."""
    found: dict[str, tuple[int, str]] = {}
    async with database.transaction() as session:
        for row in await session.rows(_TABLES):
            rows = await session.row(
                text(f"SELECT count(*), coalesce(md5(string_agg(t::text, '|' ORDER BY t::text)), '') FROM {row[0]} t")
            )
            assert rows is not None
            found[row[0]] = (rows[0], rows[1])
    return found


def changed(before: dict[str, tuple[int, str]], after: dict[str, tuple[int, str]]) -> dict[str, int]:
    """The tables that differ, with the number of rows that each has gained."""
    return {name: after[name][0] - before[name][0] for name in after if after[name] != before[name]}
