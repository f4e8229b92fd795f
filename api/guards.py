"""Who is asking, and may they: every request passes here before its handler."""

from __future__ import annotations

import asyncio
import time
from enum import Enum, auto
from typing import Any, Final

from litestar import Litestar
from litestar.connection import ASGIConnection
from litestar.enums import ScopeType
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.routes import HTTPRoute, WebSocketRoute
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from api.bodies import BODY
from api.errors import respond
from models.identity.permissions import MATRIX, Caller
from models.identity.rules import Unauthenticated
from models.identity.tokens import AccessTokens
from models.kit.errors import Forbidden, ValidationFailed

#: For `opt=` of the few handlers that nobody needs to sign in for.
PUBLIC: Final[dict[str, Any]] = {"permission": "public"}
#: For `opt=` of a controller, or `needs(.., **KEYLESS)`: its POSTs take no Idempotency-Key, since their answers hold
#: secrets, which are not kept, or have a key of their own.
KEYLESS: Final[dict[str, Any]] = {"idempotency_key": False}
#: A request that Postgres keeps waiting longer gives up with 503. Callers are promised that answer within 2 s, which
#: leaves half a second to give it to many at once. `opt={"time_limit_s": ..}` sets another limit.
TIME_LIMIT_S: Final = 1.5
#: Key in the scope's state: how many seconds more a handler may take that has committed and only waits.
GRACE_S: Final = "grace_s"
#: Our tokens have about 600 characters; whatever is far longer is not worth hashing.
_LONGEST_TOKEN: Final = 4096


class UnguardedRoute(Exception):
    """A handler states no permission; the application does not start."""


def needs(permission: str, **opt: Any) -> dict[str, Any]:
    """For `opt=` of a handler: only roles with this permission in the matrix get in."""
    if permission not in MATRIX:
        raise UnguardedRoute(f"{permission} is not in the permission matrix")
    return {"permission": permission, **opt}


class Authentication:
    """Middleware: puts the Caller (or None) into `scope["user"]` and sets the request's clock and time limit.

    A missing or bad token only matters where a permission is asked for, so public pages work beside a stale one.
    """

    def __init__(self, app: ASGIApp, tokens: AccessTokens) -> None:
        self.app = app
        self.tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["auth"] = None
        scope["user"] = self._caller(scope)
        if scope["type"] != ScopeType.HTTP:
            await self.app(scope, receive, send)
            return
        scope["state"]["began"] = time.perf_counter()
        # Postgres has no text that holds a NUL, and nothing we look for has one in its name.
        if b"%00" in scope["query_string"] or "\0" in scope["path"]:
            raise ValidationFailed({BODY: ["The address must not contain the NUL character"]})
        limit_s = scope["route_handler"].opt.get("time_limit_s", TIME_LIMIT_S)
        await _answer_in_time(self.app, scope, receive, send, limit_s)

    def _caller(self, scope: Scope) -> Caller | None:
        for name, value in scope["headers"]:
            if name == b"authorization":
                scheme, _, token = value.partition(b" ")
                if scheme.lower() != b"bearer" or len(token) > _LONGEST_TOKEN:
                    return None
                try:
                    return self.tokens.verify(token.strip().decode("latin-1"))
                except Unauthenticated:
                    return None
        return None


async def _answer_in_time(app: ASGIApp, scope: Scope, receive: Receive, send: Send, limit_s: float | None) -> None:
    """Let `app` begin its answer within `limit_s` seconds, or answer that it took too long; None waits for ever.

    `asyncio.timeout` would not do: it waits for what it cancelled, and closing the connection to a Postgres that hangs
    takes two seconds more. The request goes on being undone by itself, and cannot answer a second time.
    """
    state = _Answer.PENDING

    async def send_unless_late(message: Message) -> None:
        nonlocal state
        if state is not _Answer.LATE:
            state = _Answer.BEGUN
            await send(message)

    task = asyncio.ensure_future(app(scope, receive, send_unless_late))
    try:
        await asyncio.wait((task,), timeout=limit_s)
        if not task.done() and GRACE_S in scope["state"]:
            # Its work is done; it only waits, as its caller prefers.
            await asyncio.wait((task,), timeout=scope["state"][GRACE_S])
    except asyncio.CancelledError:
        _abandon(task)
        raise
    if not task.done() and state is _Answer.PENDING:
        state = _Answer.LATE
        _abandon(task)
        await respond(TimeoutError(), scope, receive, send)
        return
    await task


class _Answer(Enum):
    PENDING = auto()
    BEGUN = auto()
    LATE = auto()


#: Requests that are being undone. The set keeps them from being collected half way.
_abandoned: Final[set[asyncio.Future[None]]] = set()


def _abandon(task: asyncio.Future[None]) -> None:
    _abandoned.add(task)
    task.add_done_callback(_forget)
    task.cancel()


def _forget(task: asyncio.Future[None]) -> None:
    _abandoned.discard(task)
    if not task.cancelled():
        task.exception()


async def check_permission(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """The application's one guard. Raises Unauthenticated without a valid token, Forbidden without the permission.

    Not because it waits for anything: Litestar runs a guard that is no coroutine in a thread, for every request.
    """
    permission = handler.opt.get("permission")
    if permission == "public" or connection.scope.get("method") == "OPTIONS":
        return
    caller: Caller | None = connection.scope["user"]
    if caller is None:
        raise Unauthenticated()
    if permission not in MATRIX or caller.role not in MATRIX[permission]:
        raise Forbidden()


def permission_of(handler: BaseRouteHandler) -> str | None:
    """What the handler states: a permission of the matrix, `public`, or None."""
    stated = handler.opt.get("permission")
    return stated if stated == "public" or stated in MATRIX else None


def takes_key(handler: BaseRouteHandler) -> bool:
    """Whether a POST to it may be sent under an Idempotency-Key: to any that somebody must sign in for, unless it is
    KEYLESS."""
    return (
        isinstance(handler, HTTPRouteHandler)
        and "POST" in handler.http_methods
        and permission_of(handler) not in (None, "public")
        and handler.opt.get("idempotency_key", True) is True
    )


def check_routes(app: Litestar) -> None:
    """Raise UnguardedRoute for the first handler that states no permission, which then stops the start."""
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            handlers: list[BaseRouteHandler] = [h for h in route.route_handlers if h.http_methods != {"OPTIONS"}]
        elif isinstance(route, WebSocketRoute):
            handlers = [route.route_handler]
        else:
            continue
        for handler in handlers:
            if permission_of(handler) is None:
                raise UnguardedRoute(f"{route.path}: {handler} states no permission; see api/guards.py")
