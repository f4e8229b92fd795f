"""`Idempotency-Key`: a POST that is sent again has its effect once, and gets its first answer again.

The key is committed with its answer in the transaction of what the handler did, before the first byte leaves: there is
no moment at which one is there without the other. Any POST that needs a permission takes a key, unless its handler or
controller is KEYLESS (api/guards.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any, Final

from litestar import Request, Response
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from api.bodies import JsonRequest
from api.dependencies import SESSION, provide_caller, transaction_of
from api.errors import REFUSED, respond
from api.guards import takes_key
from models.idempotency.commands import TAKEN, claim, keep, replace
from models.idempotency.rules import (
    LONGEST_KEY,
    IdempotencyInProgress,
    KeptAnswer,
    KeyedRequest,
    fingerprint,
    is_kept,
    is_key,
)
from models.kit.crashes import crash_at
from models.kit.database import Database, Session
from models.kit.errors import ValidationFailed

HEADER: Final = "Idempotency-Key"
REPLAYED: Final = "Idempotency-Replayed"
_NAME: Final = HEADER.lower().encode()
#: Key in the scope's state: the request's _Claimed.
_CLAIMED: Final = "claimed"


class Idempotency:
    """Middleware: stands inside Authentication, whose caller it asks for and whose time limit holds here too."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") == "POST":
            given = [value for name, value in scope["headers"] if name == _NAME]
            if given and takes_key(scope["route_handler"]):
                await self._answer(scope, receive, send, given)
                return
        await self.app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, given: list[bytes]) -> None:
        try:
            request = JsonRequest(scope, receive)
            # A kept answer is for whoever might still ask for it.
            await request.route_handler.authorize_connection(request)
            messages = await self._once(request, await _read(request, given))
        except Exception as error:
            await respond(error, scope, receive, send)
            return
        crash_at("answer.committed")
        for message in messages:
            await send(message)

    async def _once(self, request: JsonRequest, keyed: KeyedRequest) -> list[Message]:
        """The answer, by now committed. Raises what `respond` answers."""
        state = request.scope["state"]
        try:
            async with AsyncExitStack() as transaction:
                session = await transaction.enter_async_context(transaction_of(request))
                before = await claim(session, keyed)
                if before is not None:
                    return _messages(before, replayed=True)
                await session.mark()
                claimed = state[_CLAIMED] = _Claimed(keyed, session, transaction)
                state[SESSION] = session
                answer = await _collected(self.app, request.scope, request.receive)
                await claimed.end(request, answer, refused=state.get(REFUSED))
            return _messages(answer)
        except _NotKept:
            return _messages(answer)


class _NotKept(Exception):
    """Rolls back the transaction of an answer that is not to be given again."""


class _Claimed:
    """A request that has its key, and the transaction that ends with its answer."""

    def __init__(self, keyed: KeyedRequest, session: Session, transaction: AsyncExitStack) -> None:
        self._keyed = keyed
        self._session = session
        self._transaction = transaction
        self._settled: KeptAnswer | None = None
        self._is_over = False

    async def end(self, request: JsonRequest, answer: KeptAnswer, *, refused: bool | None) -> None:
        """Commit with this answer. `refused` is None where no error was raised: then what was written stays, whatever
        the answer says. Raises _NotKept."""
        if self._settled is not None:
            if answer != self._settled and answer.status < 300:
                await self._replace(request.app.state.database, answer)
            return
        if self._is_over or not is_kept(answer.status, decided=refused is not False):
            raise _NotKept
        if refused:
            await self._session.undo()
        await self._commit(answer)

    async def settle(self, request: Request[Any, Any, Any], answer: KeptAnswer) -> None:
        """Commit with this answer before there is a better one. What the handler does next has its own transaction."""
        del request.scope["state"][SESSION]
        await self._commit(answer)
        self._settled = answer

    async def _commit(self, answer: KeptAnswer) -> None:
        self._is_over = True
        keep(self._session, self._keyed, answer)
        with _taken_is_in_progress():
            await self._transaction.aclose()

    async def _replace(self, database: Database, answer: KeptAnswer) -> None:
        # Where this fails, whoever asks again is told what was true a little earlier.
        with contextlib.suppress(SQLAlchemyError, OSError):
            async with database.reading() as session:
                await replace(session, self._keyed, answer)


async def settle(request: Request[Any, Any, Any], response: Response[Any]) -> None:
    """Commit what a request with a key has done, with this for its answer so far. For a handler that then only waits
    for something to add; without a key its transaction is over already."""
    claimed: _Claimed | None = request.scope["state"].get(_CLAIMED)
    if claimed is not None:
        answer = await request.route_handler.to_response(app=request.app, data=response, request=request)
        await claimed.settle(request, await _collected(answer, request.scope, request.receive))


@contextlib.contextmanager
def _taken_is_in_progress() -> Iterator[None]:
    """Of two with one key, one commits. Hardly ever does the other get this far: see `claim`."""
    try:
        yield
    except IntegrityError as error:
        if getattr(error.orig, "constraint_name", None) == TAKEN:
            # Without its cause, whose text has the key in it.
            raise IdempotencyInProgress() from None
        raise


async def _read(request: JsonRequest, given: list[bytes]) -> KeyedRequest:
    caller = provide_caller(request)
    key = given[0].decode("latin-1")
    if len(given) > 1 or not is_key(key):
        raise ValidationFailed({HEADER: [f"Send one key of 1 to {LONGEST_KEY} printable ASCII characters"]})
    scope = request.scope
    return KeyedRequest(
        organization_id=caller.organization_id,
        caller_id=caller.user_id,
        method=scope["method"],
        route=scope["path_template"],
        key=key,
        # Litestar keeps the body for the handler's own request.
        fingerprint=fingerprint(scope["path"], scope["query_string"], await request.body()),
    )


async def _collected(app: ASGIApp, scope: Scope, receive: Receive) -> KeptAnswer:
    """What `app` answers, held back."""
    status, headers, body = 500, list[tuple[str, str]](), list[bytes]()

    async def hold(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"]]
        elif message["type"] == "http.response.body":
            body.append(message["body"])

    await app(scope, receive, hold)
    return KeptAnswer(status=status, headers=headers, body=b"".join(body))


def _messages(answer: KeptAnswer, *, replayed: bool = False) -> list[Message]:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    if replayed:
        headers.append((REPLAYED.lower().encode(), b"true"))
    return [
        {"type": "http.response.start", "status": answer.status, "headers": headers},
        {"type": "http.response.body", "body": answer.body, "more_body": False},
    ]
