"""Every error of every layer, in one shape: `{"error", "code", "details", "request_id"}`.

A refusal of the business has its status in STATUS; the framework's own errors, the database's and our bugs are told
apart below. What is answered never holds a stack trace, a statement or an address.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import Receive, Scope, Send
from sqlalchemy import exc as sql

from api.bodies import BODY, FieldErrors, JsonRequest, UnsupportedMediaType, dotted
from api.logs import request_id_of
from models.idempotency.rules import IdempotencyInProgress, IdempotencyKeyReused
from models.identity.rules import InvalidCredentials, Unauthenticated
from models.kit.errors import (
    Forbidden,
    NotFound,
    PreconditionFailed,
    PreconditionRequired,
    Refusal,
    Unavailable,
    ValidationFailed,
)
from models.kit.outages import is_outage

log: Final = structlog.get_logger("fairlead.api")

#: The one table from refusals to HTTP. A subclass has its parent's status; what is not here is a state conflict.
STATUS: Final[dict[type[Refusal], int]] = {
    ValidationFailed: 400,
    Unauthenticated: 401,
    InvalidCredentials: 401,
    Forbidden: 403,
    NotFound: 404,
    PreconditionFailed: 412,
    UnsupportedMediaType: 415,
    IdempotencyKeyReused: 422,
    PreconditionRequired: 428,
    Unavailable: 503,
    Refusal: 409,
}
BY_STATUS: Final[dict[int, tuple[str, str]]] = {
    400: ("VALIDATION_FAILED", "Validation failed"),
    401: ("UNAUTHENTICATED", Unauthenticated.message),
    403: ("FORBIDDEN", Forbidden.message),
    404: ("NOT_FOUND", "Not found"),
    405: ("METHOD_NOT_ALLOWED", "This method is not allowed here"),
    413: ("PAYLOAD_TOO_LARGE", "The request body is larger than 1 MiB"),
    415: ("UNSUPPORTED_MEDIA_TYPE", UnsupportedMediaType.message),
    429: ("RATE_LIMITED", "Too many requests"),
    503: ("UNAVAILABLE", Unavailable.message),
}
_HEADERS: Final[dict[int, dict[str, str]]] = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}
_HEADERS_OF: Final[dict[type[Refusal], dict[str, str]]] = {IdempotencyInProgress: {"Retry-After": "1"}}
#: Key in the scope's state once an error was answered: whether somebody decided to refuse, or it just happened.
REFUSED: Final = "refused"

#: Class of SQLSTATE: a value that its column cannot hold.
_INVALID_CLASS: Final = "22"


class ErrorBody(msgspec.Struct):
    """What every error looks like. `code` is for programs, `error` for people, `request_id` for us."""

    error: str
    code: str
    details: dict[str, Any]
    request_id: str


def answer(request: Request[Any, Any, Any], error: Exception) -> Response[ErrorBody]:
    """The response to whatever was raised. Registered for `Exception`: nothing passes by it."""
    if isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    request.scope["state"][REFUSED] = isinstance(error, Refusal | HTTPException)
    status, code, message, details, headers = _told_apart(error)
    request_id = request_id_of(request.scope)
    if status == 500:
        log.error(
            "request failed",
            request_id=request_id,
            method=request.method,
            path=request.scope.get("path_template"),
            exc_info=error,
        )
    elif status == 503:
        log.warning("unavailable", request_id=request_id, error=type(error).__name__)
    return Response(
        ErrorBody(error=message, code=code, details=details, request_id=request_id),
        status_code=status,
        headers=_HEADERS.get(status, {}) | headers,
        media_type="application/json",
    )


async def respond(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Send the answer to an error, for a middleware. Litestar answers what is raised only until the handler's own
    answer has begun, also where a middleware has held that back."""
    request = JsonRequest(scope, receive)
    await answer(request, error).to_asgi_response(app=None, request=request)(scope, receive, send)


def _told_apart(error: Exception) -> tuple[int, str, str, dict[str, Any], dict[str, str]]:
    if isinstance(error, Refusal):
        status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
        return status, error.code, str(error), error.details, _HEADERS_OF.get(type(error), {})
    if isinstance(error, HTTPException):
        return _of_framework(error)
    status = _of_database(error)
    if status == 409:
        return 409, "CONFLICT", "This conflicts with what is stored", {}, {}
    if status == 400:
        return 400, *BY_STATUS[400], {"fieldErrors": {BODY: ["A value is out of range"]}}, {}
    if status == 503:
        return 503, *BY_STATUS[503], {}, {}
    return 500, "INTERNAL_ERROR", "Internal server error", {}, {}


def _of_framework(error: HTTPException) -> tuple[int, str, str, dict[str, Any], dict[str, str]]:
    status = error.status_code
    if status not in BY_STATUS:
        # The rest of what the framework raises for a client's mistake has no meaning of its own here.
        status = 400 if 400 <= status < 500 else 500
    if status == 500:
        return 500, "INTERNAL_ERROR", "Internal server error", {}, {}
    code, message = BY_STATUS[status]
    details: dict[str, Any] = {"fieldErrors": _field_errors(error)} if status == 400 else {}
    allow = (error.headers or {}).get("allow")
    return status, code, message, details, {"Allow": allow} if allow else {}


def _field_errors(error: HTTPException) -> FieldErrors:
    """Litestar's list of `{key, message}` as ours. Parameters named for a keyword of Python have a `_` at the end."""
    found: FieldErrors = {}
    listed = error.extra if isinstance(error, ValidationException) and isinstance(error.extra, list) else []
    for item in listed:
        name = dotted(item.get("key", BODY)).rstrip("_")
        if name in ("data", BODY):
            found[BODY] = ["A JSON body is required"]
        else:
            found.setdefault(name, []).append(item["message"])
    return found or {BODY: [error.detail.partition(" for path")[0] or "Malformed request"]}


def _of_database(error: Exception) -> int:
    """409, 400 or 503 for what Postgres and the way to it raise; 500 for anything else."""
    if isinstance(error, sql.IntegrityError):
        return 409
    if is_outage(error):
        return 503
    cause = error.orig if isinstance(error, sql.DBAPIError) else error
    state = getattr(cause, "sqlstate", None)
    return 400 if isinstance(state, str) and state.startswith(_INVALID_CLASS) else 500
