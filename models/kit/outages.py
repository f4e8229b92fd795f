"""Telling outages, which waiting mends, from mistakes of ours, which it does not.

An outage is waited out for as long as it takes. A mistake is the same at every attempt, so whoever repeats it for ever
blocks what stands behind it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import asyncpg
from sqlalchemy import exc as sql

#: Classes of SQLSTATE: connection lost, refused at the door, out of resources, told to stop, trouble of its machine.
_CLASSES: Final = ("08", "28", "3D", "53", "57", "58")
#: Waits that Postgres broke off (serialization, deadlock, lock time-out, an idle transaction), a server that takes no
#: connections for now, and one that is a standby for now.
_STATES: Final = frozenset({"40001", "40P01", "55P03", "25P03", "55000", "25006"})
#: A plain OSError is asyncpg's way to say that none of a host's addresses answered, and Python's for want of files.
_OF_THE_WAY: Final = (ConnectionError, TimeoutError, socket.gaierror, MemoryError)
_OF_THE_DRIVER: Final = (
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    # What the driver says of a connection that broke in the middle of an answer ("another operation is in progress").
    asyncpg.InternalClientError,
    # The schema has moved under a prepared statement; the next attempt prepares it anew.
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
)

_ROOT: Final = Path(__file__).resolve().parents[2]
_LAYERS: Final = ("api", "workflows", "activities", "models")


def is_outage(error: BaseException) -> bool:
    """Would the same work succeed once Postgres, the way to it or the machine has recovered?"""
    return any(_is_one(link) for link in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, down to the driver's own."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = (isinstance(link, sql.DBAPIError) and link.orig) or link.__cause__


def _is_one(error: BaseException) -> bool:
    if isinstance(error, (*_OF_THE_WAY, *_OF_THE_DRIVER, sql.TimeoutError, sql.InterfaceError)):
        return True
    if type(error) is OSError or (isinstance(error, sql.DBAPIError) and error.connection_invalidated):
        return True
    state = getattr(error, "sqlstate", None)
    return isinstance(state, str) and (state.startswith(_CLASSES) or state in _STATES)


def without_values(error: BaseException) -> str:
    """What may be stored and shown of a mistake: its class, Postgres's own names where it is one of Postgres's, and
    where it was raised. No message, since messages like to repeat the values of rows.

    `IntegrityError 23505 offers.uq_offers_round at models/work/commands.py:301 in name_driver`
    """
    parts = [type(error).__name__]
    for link in _chain(error):
        if isinstance(link, asyncpg.PostgresError) and link.sqlstate:
            named = (link.table_name, link.constraint_name or link.column_name)
            parts += [link.sqlstate, ".".join(name for name in named if name)]
            break
    return " ".join(part for part in [*parts, _place(error)] if part)


def _place(error: BaseException) -> str:
    """The innermost line of ours that it came through, the way to Postgres left out."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if path.is_relative_to(_ROOT):
            module = path.relative_to(_ROOT)
            if module.parts[0] in _LAYERS and not module.is_relative_to("models/kit"):
                place = f"at {module}:{trace.tb_lineno} in {trace.tb_frame.f_code.co_name}"
        trace = trace.tb_next
    return place
