"""Logs: one JSON object a line, our own and the libraries'. No personal data, no bodies, no tokens."""

from __future__ import annotations

import logging
import re
import sys
import time
from typing import Any, Final

import msgspec
import structlog
from litestar.types import HTTPScope, Scope

from models.identity.permissions import Caller
from models.kit.ids import new_id
from models.kit.settings import Settings

#: The loggers that are ours.
LAYERS: Final = ("api", "workflows", "activities", "models", "migrations")
#: What we take over from a proxy or client as the id of a request.
_SANE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{7,63}")
#: Asked every few seconds by every load balancer.
_QUIET: Final = frozenset({"/health", "/health/ready", "/api/v1/health"})

access: Final = structlog.get_logger("fairlead.access")


def configure_logging(settings: Settings) -> None:
    """Send structlog and the standard library's loggers to stdout, as JSON or (`LOG_FORMAT=console`) for people."""
    level = getattr(logging, settings.log_level.upper())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if settings.log_format == "json":
        finish: list[structlog.typing.Processor] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_encode),
        ]
    else:
        # Plain: drawing a traceback with its variables takes seconds, in which workflow tasks run out of time, and the
        # variables are nobody's business.
        plain = structlog.dev.plain_traceback
        finish = [structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=[*shared, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finish],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    # The libraries' own chatter starts at INFO: connection pools, retries, every request sent.
    root.setLevel(max(level, logging.WARNING))
    for ours in LAYERS:
        logging.getLogger(ours).setLevel(level)


def _encode(event: Any, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()


def request_id_of(scope: Scope) -> str:
    """The request's id: the caller's own X-Request-ID where it is a sane one, else a new one. Kept in the scope."""
    state = scope["state"]
    known: str | None = state.get("request_id")
    if known is None:
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        text = given.decode("latin-1")
        known = state["request_id"] = text if _SANE_ID.fullmatch(text) else str(new_id())
    return known


def log_access(status: int, scope: HTTPScope) -> None:
    """One line for a response that is about to start. The path is the template, so that no id or name is logged."""
    began = scope["state"].get("began")
    caller = scope.get("user")
    path = scope.get("path_template")
    write = access.debug if path in _QUIET else access.info
    write(
        "request",
        request_id=request_id_of(scope),
        method=scope["method"],
        path=path,
        status=status,
        ms=None if began is None else round((time.perf_counter() - began) * 1000, 1),
        user_id=str(caller.user_id) if isinstance(caller, Caller) else None,
        organization_id=str(caller.organization_id) if isinstance(caller, Caller) else None,
    )
