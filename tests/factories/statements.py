"""Seeing what reaches Postgres, whichever way it goes."""

from __future__ import annotations

from typing import Any

from asyncpg.connection import LoggedQuery
from sqlalchemy import event

from models.kit.database import Database

_FRAME = ("BEGIN", "COMMIT", "ROLLBACK")


class Statements(list[tuple[str, tuple[Any, ...]]]):
    """The statements of a database from now on, with their values; what only frames a transaction left out."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._watched: set[int] = set()
        event.listen(database.engine.sync_engine, "checkout", self._watch)
        event.listen(database.engine.sync_engine, "before_cursor_execute", self._note_of_sqlalchemy)

    def _watch(self, adapted: Any, *_: object) -> None:
        connection = adapted.driver_connection
        if id(connection) not in self._watched:
            self._watched.add(id(connection))
            connection.add_query_logger(self._note)

    def _note_of_sqlalchemy(self, _connection: Any, _cursor: Any, statement: str, values: Any, *_: object) -> None:
        # It runs them as prepared statements, which asyncpg does not log.
        self.append((statement, tuple(values)))

    def _note(self, query: LoggedQuery) -> None:
        if not query.query.lstrip().startswith(_FRAME):
            self.append((query.query, tuple(query.args or ())))
