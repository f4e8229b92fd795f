"""The database: one pool, and one `Session` per transaction.

The boundary (an HTTP request or an activity) opens `Database.transaction()` and commits by leaving it; commands take
the Session and never commit. Rows that only accompany a change (events, audit, messages) are staged and written in one
statement per table just before the commit; wakes are written last of all, sorted, so that their locks never cross.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal
from uuid import UUID

import msgspec
from sqlalchemy import Executable, Table, insert
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

ActorKind = Literal["user", "api_key", "system", "workflow"]


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """Who causes a write, for its event and audit row. `user_id` is null for time and the system."""

    kind: ActorKind = "system"
    user_id: UUID | None = None
    request_id: str | None = None
    ip: str | None = None


SYSTEM = Actor()


class Session:
    """One transaction and what is to be written with it."""

    def __init__(self, connection: AsyncConnection, actor: Actor, *, messages_enabled: bool = True) -> None:
        self.connection = connection
        self.actor = actor
        self.messages_enabled = messages_enabled
        #: What happened, by topic ("wakes", ..); told to the database's listeners once the commit is through.
        self.topics: set[str] = set()
        #: What a module gathers during the transaction to write at its end, under the module's own key.
        self.scratch: dict[str, Any] = {}
        self._staged: dict[Table, list[dict[str, Any]]] = {}
        self._finally: dict[str, Callable[[], Awaitable[None]]] = {}
        self._after_commit: list[Callable[[], None]] = []

    async def rows(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
        return (await self.connection.execute(statement, values)).all()

    async def row(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Row[Any] | None:
        return (await self.connection.execute(statement, values)).first()

    async def value(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Any:
        """The first column of the first row, or None."""
        return (await self.connection.execute(statement, values)).scalar()

    async def run(self, statement: Executable, values: Any = None) -> int:
        """Execute and give the number of rows it touched."""
        return (await self.connection.execute(statement, values)).rowcount

    def stage(self, table: Table, **values: Any) -> None:
        """Write this row with the commit, together with the others of its table. Rows of a table share their keys."""
        self._staged.setdefault(table, []).append(values)

    def finally_do(self, name: str, write: Callable[[], Awaitable[None]]) -> None:
        """Run `write` once, after the staged rows and right before the commit."""
        self._finally.setdefault(name, write)

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Call this once the commit is through, and not at all when it fails."""
        self._after_commit.append(callback)

    def committed(self) -> None:
        for callback in self._after_commit:
            callback()

    async def flush(self) -> None:
        staged, self._staged = self._staged, {}
        for table, rows in staged.items():
            await self.connection.execute(insert(table), rows if len(rows) > 1 else rows[0])
        last, self._finally = self._finally, {}
        for write in last.values():
            await write()


class Database:
    """The pool. `listeners[topic]` are called after a commit that raised the topic; they must not block."""

    def __init__(self, url: str, *, pool_size: int = 16, name: str = "fairlead", messages_enabled: bool = True) -> None:
        self.messages_enabled = messages_enabled
        self.engine: AsyncEngine = create_async_engine(
            url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=2,
            pool_use_lifo=True,
            json_serializer=lambda value: msgspec.json.encode(value).decode(),
            json_deserializer=msgspec.json.decode,
            connect_args={
                "timeout": 2,
                "command_timeout": 30,
                "prepared_statement_cache_size": 500,
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
        self.listeners: dict[str, list[Callable[[], None]]] = {}

    @asynccontextmanager
    async def transaction(self, actor: Actor = SYSTEM) -> AsyncIterator[Session]:
        """A Session that commits when the block ends and rolls back when it raises."""
        async with self.engine.connect() as connection, connection.begin():
            session = Session(connection, actor, messages_enabled=self.messages_enabled)
            yield session
            await session.flush()
        session.committed()
        for topic in session.topics:
            for listener in self.listeners.get(topic, ()):
                listener()

    def listen(self, topic: str, listener: Callable[[], None]) -> None:
        self.listeners.setdefault(topic, []).append(listener)

    async def close(self) -> None:
        await self.engine.dispose()
