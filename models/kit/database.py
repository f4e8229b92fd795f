"""The database: one pool, and one `Session` per transaction.

The boundary (an HTTP request or an activity) opens `Database.transaction()` and commits by leaving it; commands take
the Session and never commit. Commands first read and lock, then say what to `write`; all of that goes out in one
statement right before the commit, since what a transaction costs is mostly its round trips.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, Literal
from uuid import UUID

import msgspec
from sqlalchemy import Executable, Table, event, insert
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Row
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from models.kit.crashes import crash_at
from models.kit.driver import Driver, refuse_unfinished
from models.kit.sql import Sql, bind_all, encode_json, insert_into, merged

log = logging.getLogger(__name__)

ActorKind = Literal["user", "api_key", "system", "workflow"]


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """Who causes a write, for its event and audit row. `user_id` is null for time and the system."""

    kind: ActorKind = "system"
    user_id: UUID | None = None
    request_id: str | None = None
    ip: str | None = None


SYSTEM = Actor()

#: More rows than this of one table go in a statement of their own, so that merged statements stay few and small.
MERGE_AT_MOST = 3

_MARK = Sql("SAVEPOINT mark")
_UNDO = Sql("ROLLBACK TO SAVEPOINT mark")


class Session:
    """One transaction and what is to be written with it."""

    def __init__(self, connection: AsyncConnection, actor: Actor = SYSTEM, *, messages_enabled: bool = True) -> None:
        self.connection = connection
        self.actor = actor
        self.messages_enabled = messages_enabled
        #: What happened, by topic ("wakes", ..); told to the database's listeners once the commit is through.
        self.topics: set[str] = set()
        #: What a module gathers during the transaction to write at its end, under the module's own key.
        self.scratch: dict[str, Any] = {}
        #: Statements that wait for the commit. A row that is written twice begins the next batch.
        self._batches: list[list[tuple[Sql, Mapping[str, Any]]]] = [[]]
        self._written: set[tuple[str, UUID]] = set()
        self._short: Driver | None = None
        self._staged: dict[Table, list[dict[str, Any]]] = {}
        self._before_commit: dict[str, Callable[[], None]] = {}
        self._after_commit: list[Callable[[], None]] = []
        self.follow_ups: dict[str, Callable[[Database], Awaitable[None]]] = {}

    async def _driver(self) -> Driver:
        if self._short is None:
            self._short = await Driver.of(self.connection)
        return self._short

    async def _ready(self) -> None:
        if self._staged or self._written:
            # What follows must see what was written so far. Reading first, then writing, saves this round trip.
            await self._write_gathered()

    async def rows(self, statement: Sql | Executable, values: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
        await self._ready()
        if isinstance(statement, Sql):
            return await (await self._driver()).fetch(statement.text, statement.bind(values))
        return (await self.connection.execute(statement, values)).all()

    async def row(self, statement: Sql | Executable, values: Mapping[str, Any] | None = None) -> Row[Any] | None:
        await self._ready()
        if isinstance(statement, Sql):
            found = await (await self._driver()).fetch(statement.text, statement.bind(values))
            return found[0] if found else None
        return (await self.connection.execute(statement, values)).first()

    async def value(self, statement: Sql | Executable, values: Mapping[str, Any] | None = None) -> Any:
        """The first column of the first row, or None."""
        row = await self.row(statement, values)
        return None if row is None else row[0]

    async def run(self, statement: Sql | Executable, values: Any = None) -> int:
        """Execute at once and give the number of rows it touched."""
        await self._ready()
        if isinstance(statement, Sql):
            return await (await self._driver()).execute(statement.text, statement.bind(values))
        return (await self.connection.execute(statement, values)).rowcount

    def write(self, statement: Sql, values: Mapping[str, Any], *, row: UUID) -> None:
        """Write this with the commit (or before the next read), together with everything else that waits for it, in
        one statement and so one round trip. `row` is the id of the one row it changes, which this transaction has
        locked: Postgres would do only one of two changes to a row in one statement."""
        key = (statement.target, row)
        if key in self._written:
            self._batches.append([])
            self._written.clear()
        self._written.add(key)
        self._batches[-1].append((statement, values))

    def stage(self, table: Table, **values: Any) -> None:
        """Insert this row with the commit."""
        self._staged.setdefault(table, []).append(values)

    def before_commit(self, name: str, prepare: Callable[[], None]) -> None:
        """Call `prepare` once, when all else is gathered; it may still `write` and `stage`."""
        self._before_commit.setdefault(name, prepare)

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Call this once the commit is through, and not at all when it fails."""
        self._after_commit.append(callback)

    def follow_up(self, name: str, work: Callable[[Database], Awaitable[None]]) -> None:
        """Do this once after the commit, when everybody sees what was committed. It may be lost in a crash: only for
        what a sweep finds as well."""
        self.follow_ups.setdefault(name, work)

    async def mark(self) -> None:
        """Let `undo` come back to here. Before anything is written."""
        await self.run(_MARK)

    async def undo(self) -> None:
        """Go back to the `mark`, also where a statement has failed since: what was written or gathered is not, and
        locks taken since are free."""
        self._staged, self._batches = {}, [[]]
        self._before_commit, self._after_commit, self.follow_ups = {}, [], {}
        for gathered in (self._written, self.topics, self.scratch):
            gathered.clear()
        await self.run(_UNDO)

    def committed(self) -> None:
        for callback in self._after_commit:
            callback()

    async def flush(self) -> None:
        """Write all that was gathered."""
        prepared, self._before_commit = self._before_commit, {}
        for prepare in prepared.values():
            prepare()
        await self._write_gathered()

    async def _write_gathered(self) -> None:
        staged, self._staged = self._staged, {}
        batches, self._batches = self._batches, [[]]
        self._written.clear()
        large: list[tuple[Table, list[dict[str, Any]]]] = []
        for table, rows in staged.items():
            if len(rows) > MERGE_AT_MOST:
                large.append((table, rows))
                continue
            json = _json_columns(table)
            for row in rows:
                values = {k: encode_json(v) if k in json and v is not None else v for k, v in row.items()}
                batches[-1].append((insert_into(table.name, tuple(row)), values))
        for batch in batches:
            if batch:
                statement = merged(tuple(write for write, _ in batch))
                await (await self._driver()).execute(statement, bind_all(batch))
        for table, rows in large:
            await self.connection.execute(insert(table), rows)


@cache
def _json_columns(table: Table) -> frozenset[str]:
    return frozenset(column.name for column in table.columns if isinstance(column.type, JSONB))


class Database:
    """The pool. `listeners[topic]` are called after a commit that raised the topic; they must not block. A statement
    may take `statement_s` seconds, waiting for a free connection `wait_s`."""

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 16,
        name: str = "fairlead",
        messages_enabled: bool = True,
        statement_s: float = 30,
        # Below the time that a request has (api/guards.py).
        wait_s: float = 1.2,
    ) -> None:
        self.messages_enabled = messages_enabled
        self.engine: AsyncEngine = create_async_engine(
            url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=wait_s,
            # An error's text goes into logs, and what a statement was given into an error's text.
            hide_parameters=True,
            pool_use_lifo=True,
            json_serializer=lambda value: msgspec.json.encode(value).decode(),
            json_deserializer=msgspec.json.decode,
            connect_args={
                # To connect; as long as a request may wait.
                "timeout": 1.2,
                "command_timeout": statement_s,
                "prepared_statement_cache_size": 500,
                "statement_cache_size": 500,
                "server_settings": {
                    "application_name": name,
                    # Our statements are short; compiling them costs more than running them.
                    "jit": "off",
                    "timezone": "UTC",
                    "lock_timeout": "10s",
                    "idle_in_transaction_session_timeout": "30s",
                },
            },
        )
        event.listen(self.engine.sync_engine, "checkout", refuse_unfinished)
        self._autocommit = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self.listeners: dict[str, list[Callable[[], None]]] = {}

    @asynccontextmanager
    async def transaction(self, actor: Actor = SYSTEM) -> AsyncIterator[Session]:
        """A Session that commits when the block ends and rolls back when it raises."""
        async with self.engine.connect() as connection, connection.begin():
            session = Session(connection, actor, messages_enabled=self.messages_enabled)
            yield session
            await session.flush()
            crash_at("transaction.flushed")
        crash_at("transaction.committed")
        session.committed()
        for follow_up in session.follow_ups.values():
            try:
                await follow_up(self)
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                # The transaction stands, and so does its answer.
                log.warning("follow_up_failed error=%s", type(error).__name__)
        self.tell(session.topics)

    def tell(self, topics: Iterable[str]) -> None:
        """Call the listeners of these topics."""
        for topic in topics:
            for listener in self.listeners.get(topic, ()):
                listener()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Session]:
        """A Session without a transaction around it: each statement sees what is committed when it starts, and costs
        one round trip instead of three. Also for a single statement that writes by itself."""
        async with self._autocommit.connect() as connection:
            yield Session(connection)

    def listen(self, topic: str, listener: Callable[[], None]) -> None:
        self.listeners.setdefault(topic, []).append(listener)

    async def close(self) -> None:
        await self.engine.dispose()
