"""The short way to Postgres: our own statements go to asyncpg directly, on the connection and in the transaction that
SQLAlchemy manages. It costs a third of the CPU of the way through SQLAlchemy's execution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import asyncpg
from sqlalchemy import exc
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi as DBAPI
from sqlalchemy.ext.asyncio import AsyncConnection


class Record(asyncpg.Record):
    """A row with its columns as attributes, as SQLAlchemy's rows have them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def _asdict(self) -> dict[str, Any]:
        return dict(self.items())


def refuse_unfinished(adapted: Any, *_: object) -> None:
    """For the pool's `checkout` event: throw a connection away that is in a transaction already, and take another.

    Whoever is cut off in the middle of a BEGIN (cancelled, or out of time while Postgres hangs) leaves one behind that
    SQLAlchemy knows nothing of. To asyncpg the next transaction would be a nested one, with a SAVEPOINT for its BEGIN
    and a RELEASE for its COMMIT: it would succeed, be answered for, and never be committed.
    """
    connection = adapted.driver_connection
    if connection._top_xact is not None or connection.is_in_transaction():  # noqa: SLF001 - the state has no other name
        raise exc.DisconnectionError("A transaction was left unfinished")


class _Adapted(Protocol):
    """What we use of SQLAlchemy's adapter around an asyncpg connection."""

    _transaction: object | None

    async def _start_transaction(self) -> None: ...


class Driver:
    """asyncpg under one SQLAlchemy connection. Errors come as SQLAlchemy's, so that callers know only those."""

    def __init__(self, connection: AsyncConnection, adapted: Any) -> None:
        self._connection = connection
        self._adapted = cast(_Adapted, adapted)
        self._asyncpg: asyncpg.Connection[Any] = adapted.driver_connection

    @classmethod
    async def of(cls, connection: AsyncConnection) -> Driver:
        return cls(connection, (await connection.get_raw_connection()).dbapi_connection)

    async def fetch(self, statement: str, values: tuple[Any, ...]) -> Sequence[Any]:
        try:
            await self._begin()
            return await self._asyncpg.fetch(statement, *values, record_class=Record)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise await self._translated(statement, error) from error

    async def execute(self, statement: str, values: tuple[Any, ...]) -> int:
        """The number of rows that it touched."""
        try:
            await self._begin()
            status = await self._asyncpg.execute(statement, *values)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise await self._translated(statement, error) from error
        count = status.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    async def _begin(self) -> None:
        """Begin SQLAlchemy's own transaction, as its first statement would; nothing in autocommit."""
        if self._adapted._transaction is None:  # noqa: SLF001 - the adapter has no public way to begin
            try:
                await self._adapted._start_transaction()  # noqa: SLF001
            except DBAPI.Error as error:
                # The adapter's own translation, which is none of SQLAlchemy's errors and leaves a dead connection in
                # the pool.
                if error.__cause__ is None:
                    raise
                raise error.__cause__ from None

    async def _translated(self, statement: str, error: Exception) -> Exception:
        if self._asyncpg.is_closed() or isinstance(error, asyncpg.PostgresConnectionError | OSError):
            # SQLAlchemy finds out by itself, and drops the pool's other connections, which are as dead.
            await self._connection.exec_driver_sql("SELECT 1")
        for kind, translated in _TRANSLATED:
            if isinstance(error, kind):
                return translated(statement, None, error)
        return exc.DBAPIError(statement, None, error)


_TRANSLATED: tuple[tuple[type[Exception], type[exc.DBAPIError]], ...] = (
    (asyncpg.IntegrityConstraintViolationError, exc.IntegrityError),
    (asyncpg.DataError, exc.DataError),
    (asyncpg.SyntaxOrAccessError, exc.ProgrammingError),
    (asyncpg.OperatorInterventionError, exc.OperationalError),
    (asyncpg.InsufficientResourcesError, exc.OperationalError),
    (asyncpg.InterfaceError, exc.InterfaceError),
)
