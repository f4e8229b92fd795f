"""Statements in SQL, prepared once: `:names` become `$n` at import, so that a hot path pays for little but Postgres."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
from sqlalchemy import Select
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

# A name after a single colon; `::type` is a cast.
_TARGET = re.compile(r"\b(?:UPDATE|INSERT INTO|DELETE FROM)\s+(\w+)")
_NAME = re.compile(r"(?<![:\w]):([a-z_]+)\b(?!:)")


class Sql:
    """One statement. A name may stand in it several times; its places share a parameter, so also its type."""

    __slots__ = ("given", "names", "target", "text")

    def __init__(self, text: str) -> None:
        #: Values that are part of the statement.
        self.given: dict[str, Any] = {}
        names: list[str] = []

        def number(match: re.Match[str]) -> str:
            if match[1] not in names:
                names.append(match[1])
            return f"${names.index(match[1]) + 1}"

        self.text = _NAME.sub(number, text)
        self.names = tuple(names)
        written = _TARGET.search(text)
        #: The table that it writes; empty for a query.
        self.target = written[1] if written else ""

    def bind(self, values: Mapping[str, Any] | None) -> tuple[Any, ...]:
        """The parameters in order. Raises KeyError for a name without a value."""
        if self.given:
            values = {**self.given, **(values or {})}
        return tuple(values[name] for name in self.names) if values else ()


def compiled(query: Select[Any]) -> Sql:
    """A query made with SQLAlchemy, compiled once: for those that are built once and asked often. Its own values stay
    in it, its `bindparam`s are given when it runs. A jsonb column comes as its text."""
    made = query.compile(dialect=_DIALECT)
    statement = Sql("")
    statement.text = str(made)
    statement.names = tuple(made.positiontup or ())
    statement.given = {name: value for name, value in made.params.items() if value is not None}
    return statement


_DIALECT = PGDialect_asyncpg()  # type: ignore[no-untyped-call]
_NUMBER = re.compile(r"\$(\d+)")


@lru_cache(maxsize=1024)
def merged(writes: tuple[Sql, ...]) -> str:
    """One statement that does all these writes. Postgres gives them one snapshot and no order: each touches rows of
    its own, which the transaction has locked or makes."""
    if len(writes) == 1:
        return writes[0].text
    parts: list[str] = []
    offset = 0
    for i, write in enumerate(writes):
        shifted = _NUMBER.sub(lambda m, by=offset: f"${int(m[1]) + by}", write.text)  # type: ignore[misc]
        parts.append(f"w{i} AS ({shifted})")
        offset += len(write.names)
    return f"WITH {', '.join(parts)} SELECT 1"


@lru_cache(maxsize=1024)
def insert_into(table: str, columns: tuple[str, ...]) -> Sql:
    """An INSERT of one row with these columns."""
    return Sql(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(f':{c}' for c in columns)})")  # noqa: S608 - names of our own tables


def encode_json(value: Any) -> str:
    """A value for a jsonb parameter."""
    return msgspec.json.encode(value).decode()


def bind_all(writes: Sequence[tuple[Sql, Mapping[str, Any]]]) -> tuple[Any, ...]:
    return tuple(value for write, values in writes for value in write.bind(values))
