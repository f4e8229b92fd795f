"""What handlers ask for by name: the caller, their session, a page; and the headers of a conversation.

session: NamedDependency[Session]    one transaction, committed before the answer leaves, rolled back on any error
caller: NamedDependency[Caller]      who asks
paging: NamedDependency[Page]        `?page=&limit=`
database: NamedDependency[Database]  for the few handlers that need more than one transaction
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Annotated, Any, Final, Generic, TypeVar
from uuid import UUID

import msgspec
from litestar import Request, Response
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency, Provide
from litestar.params import QueryParameter

from api.logs import request_id_of
from models.identity.permissions import Caller
from models.identity.rules import Unauthenticated
from models.kit.database import Actor, Database, Session
from models.kit.errors import PreconditionFailed, PreconditionRequired, ValidationFailed

T = TypeVar("T")

MAX_WAIT_S: Final = 5
#: Key in the scope's state: the Session that api/idempotency.py has opened for this request, and ends.
SESSION: Final = "session"
_ETAG: Final = re.compile(r'"([0-9]{1,9})"')
_WAIT: Final = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?([0-9]{1,9})\"?\s*(?=$|[,;])", re.IGNORECASE)


def provide_caller(request: Request[Any, Any, Any]) -> Caller:
    caller = request.scope["user"]
    if not isinstance(caller, Caller):
        raise Unauthenticated()
    return caller


def provide_database(request: Request[Any, Any, Any]) -> Database:
    database: Database = request.app.state.database
    return database


async def provide_session(
    request: Request[Any, Any, Any], caller: NamedDependency[Caller]
) -> AsyncGenerator[Session, None]:
    # Asking for the caller, though the request has it, makes Litestar resolve the two one after the other: side by
    # side it would start a task group for them on every request.
    async with transaction_of(request) as session:
        yield session


def transaction_of(request: Request[Any, Any, Any]) -> AbstractAsyncContextManager[Session]:
    """A transaction for what this request does. Under an Idempotency-Key it is the one that keeps the answer too, and
    commits when there is one."""
    joined: Session | None = request.scope["state"].get(SESSION)
    if joined is not None:
        return nullcontext(joined)
    database: Database = request.app.state.database
    return database.transaction(actor_of(request))


def actor_of(request: Request[Any, Any, Any]) -> Actor:
    """Who causes what this request writes; kind `system` where nobody has signed in (yet)."""
    caller = request.scope.get("user")
    client = request.scope.get("client")
    return Actor(
        kind="user" if isinstance(caller, Caller) else "system",
        user_id=caller.user_id if isinstance(caller, Caller) else None,
        request_id=request_id_of(request.scope),
        ip=client[0] if client else None,
    )


class Page(msgspec.Struct, frozen=True):
    """Which part of a list: `number` from 1, `limit` rows of it."""

    number: int = 1
    limit: int = 20

    @property
    def offset(self) -> int:
        return (self.number - 1) * self.limit


def provide_paging(
    page: Annotated[int, QueryParameter(ge=1, le=1_000_000, description="From 1")] = 1,
    limit: Annotated[int, QueryParameter(ge=1, le=100, description="Rows on a page")] = 20,
) -> Page:
    return Page(page, limit)


class Paged(msgspec.Struct, Generic[T], rename={"total_pages": "totalPages"}):
    """A page of a list."""

    data: list[T]
    total: int
    page: int
    limit: int
    total_pages: int


class Feed(msgspec.Struct, Generic[T], rename={"total_pages": "totalPages", "next_cursor": "nextCursor"}):
    """A page of a list that grows without bound. Following `nextCursor` (as `?cursor=`) misses and repeats nothing
    while rows are added, and costs the same at any depth; the counts are null there. The last page has none."""

    data: list[T]
    total: int | None
    page: int | None
    limit: int
    total_pages: int | None
    next_cursor: str | None


def paged(rows: list[T], total: int, page: Page) -> Paged[T]:
    return Paged(data=rows, total=total, page=page.number, limit=page.limit, total_pages=-(-total // page.limit))


def feed(rows: list[T], ids: list[UUID], *, page: Page, total: int | None) -> Feed[T]:
    """`rows` with their `ids`, fetched with a limit one above the page's, to see whether more follow; `total` is None
    where a cursor was followed."""
    more = len(rows) > page.limit
    return Feed(
        data=rows[: page.limit],
        total=total,
        page=None if total is None else page.number,
        limit=page.limit,
        total_pages=None if total is None else -(-total // page.limit),
        next_cursor=encode_cursor(ids[page.limit - 1]) if more else None,
    )


def encode_cursor(last: UUID) -> str:
    return base64.urlsafe_b64encode(last.bytes).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> UUID | None:
    """The id after which to go on. Raises ValidationFailed for what `encode_cursor` did not make."""
    if cursor is None:
        return None
    try:
        return UUID(bytes=base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error):
        raise ValidationFailed({"cursor": ["Not a cursor of this list"]}) from None


def expected_version(request: Request[Any, Any, Any]) -> int:
    """The version in If-Match. Raises PreconditionRequired without one, PreconditionFailed for one that no resource
    of ours ever had (weak tags and lists included)."""
    given = request.headers.get("if-match")
    if given is None:
        raise PreconditionRequired()
    if (match := _ETAG.fullmatch(given.strip())) is None:
        raise PreconditionFailed()
    return int(match[1])


def etagged(resource: T, version: int, *, status_code: int = 200) -> Response[T]:
    """The resource with its strong ETag."""
    return Response(resource, headers={"ETag": f'"{version}"'}, status_code=status_code)


def wait_preference(request: ASGIConnection[Any, Any, Any, Any]) -> int:
    """Seconds from `Prefer: wait=N` (RFC 7240), at most 5; 0 without one. A preference is never an error."""
    match = _WAIT.search(request.headers.get("prefer", ""))
    return min(int(match[1]), MAX_WAIT_S) if match else 0


DEPENDENCIES: Final = {
    "caller": Provide(provide_caller, sync_to_thread=False),
    "database": Provide(provide_database, sync_to_thread=False),
    "session": Provide(provide_session),
    "paging": Provide(provide_paging, sync_to_thread=False),
}
