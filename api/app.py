"""The application on one page: what it serves, what every request passes through, and what runs beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

import structlog
from litestar import Litestar, Router
from litestar.config.cors import CORSConfig
from litestar.datastructures import State
from litestar.enums import ScopeType
from litestar.middleware import DefineMiddleware
from litestar.types import ControllerRouterHandler, Message, Scope

from api.audit import AuditController
from api.auth import AuthController, permissions
from api.bodies import MAX_BODY_BYTES, JsonRequest
from api.dashboard import dashboard, fairness_report
from api.dependencies import DEPENDENCIES
from api.dev import dev_outbox
from api.docs import DocsDocument, DocsPage, docs_router, openapi_file
from api.drivers import DriverController, OwnDriverController
from api.enrollments import EnrollmentController
from api.errors import answer
from api.guards import Authentication, check_permission, check_routes
from api.health import health, health_v1, ready
from api.idempotency import HEADER, REPLAYED, Idempotency
from api.jobs import JobController
from api.logs import configure_logging, log_access, request_id_of
from api.offers import OfferController, orders_feed
from api.openapi import openapi_config
from api.orders import OrderController
from api.policies import PolicyController
from api.routes import RouteController
from api.users import UserController
from api.work_orders import WorkOrderController
from models.identity.tokens import AccessTokens
from models.kit.crashes import arm
from models.kit.database import Database
from models.kit.settings import Settings, load_settings
from workflows.relay import WakeRelay

log: Final = structlog.get_logger("fairlead.api")

#: Everything under /api/v1, a module per noun.
V1: Final[list[ControllerRouterHandler]] = [
    health_v1,
    AuthController,
    permissions,
    UserController,
    AuditController,
    WorkOrderController,
    EnrollmentController,
    JobController,
    OrderController,
    RouteController,
    OfferController,
    orders_feed,
    OwnDriverController,
    DriverController,
    PolicyController,
    dashboard,
    fairness_report,
]


def create_app(
    settings: Settings | None = None,
    *,
    with_worker: bool = False,
    with_relay: bool = True,
    database: Database | None = None,
) -> Litestar:
    """The application. Without `settings` they come from the environment; a `database` that is given stays open at
    the end. `with_relay` sends wakes from this process, `with_worker` also runs workflows in it."""
    settings = settings or load_settings()
    configure_logging(settings)
    arm(settings.dev_crash_at)
    tokens = AccessTokens(settings.secret_key)
    app = Litestar(
        route_handlers=[
            health,
            ready,
            openapi_file,
            Router("/api/v1", route_handlers=V1),
            *([dev_outbox] if settings.dev_mode else []),
        ],
        state=State({"settings": settings, "tokens": tokens}),
        lifespan=[_lifespan(settings, database, with_relay=with_relay, with_worker=with_worker)],
        middleware=[DefineMiddleware(Authentication, tokens=tokens), Idempotency],
        guards=[check_permission],
        dependencies=DEPENDENCIES,
        request_class=JsonRequest,
        request_max_body_size=MAX_BODY_BYTES,
        exception_handlers={Exception: answer},
        before_send=[_finish(settings)],
        cors_config=_cors(settings),
        openapi_config=openapi_config(docs_router(), [DocsPage(), DocsDocument()]),
        # `answer` logs what deserves it, once, with the request's id.
        logging_config=None,
        debug=False,
    )
    check_routes(app)
    return app


def _lifespan(
    settings: Settings, given: Database | None, *, with_relay: bool, with_worker: bool
) -> Callable[[Litestar], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        database = given or Database(
            settings.sqlalchemy_url,
            pool_size=settings.database_pool_size,
            name="fairlead-api",
            messages_enabled=settings.messages_enabled,
        )
        app.state.database = database
        beside: list[asyncio.Task[None]] = []
        if with_worker:
            # The worker has a relay of its own.
            beside.append(asyncio.create_task(_work(database, settings), name="worker"))
        elif with_relay:
            beside.append(asyncio.create_task(WakeRelay(database, settings).run(), name="wake relay"))
        for task in beside:
            task.add_done_callback(_report_end)
        try:
            yield
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            if given is None:
                await database.close()

    return lifespan


async def _work(database: Database, settings: Settings) -> None:
    """Run workflows in this process as soon as Temporal is up; requests are answered meanwhile."""
    # Only here: with the worker come the provider SDKs, which an API on its own has no use for.
    from workflows.worker import serve

    await serve(database, settings, asyncio.Event())


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        log.critical("stopped by itself", task=task.get_name(), exc_info=task.exception())


def _finish(settings: Settings) -> Callable[[Message, Scope], Awaitable[None]]:
    """The hook that every response passes, errors and unknown paths included: headers, then the access log."""
    headers = [
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-opener-policy", b"same-origin"),
        (b"permissions-policy", b"camera=(), microphone=(), geolocation=(self)"),
    ]
    if not settings.dev_mode:
        headers.append((b"strict-transport-security", b"max-age=31536000; includeSubDomains"))
    #: For answers that do not say otherwise: data is for its caller alone, and JSON is nothing to run.
    unless_given = [
        (b"cache-control", b"no-store"),
        (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'"),
    ]

    async def finish(message: Message, scope: Scope) -> None:
        if message["type"] != "http.response.start" or scope["type"] != ScopeType.HTTP:
            return
        given = list(message["headers"])
        names = {name.lower() for name, _ in given}
        given += headers
        given += [header for header in unless_given if header[0] not in names]
        given.append((b"x-request-id", request_id_of(scope).encode()))
        message["headers"] = given
        log_access(message["status"], scope)

    return finish


def _cors(settings: Settings) -> CORSConfig | None:
    """`CORS_ORIGINS`, separated by commas. None, the default: only pages of our own origin may read answers."""
    origins = [origin.strip().rstrip("/") for origin in settings.cors_origins.split(",") if origin.strip()]
    if not origins:
        return None
    return CORSConfig(
        allow_origins=origins,
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"],
        allow_headers=["Authorization", "Content-Type", HEADER, "If-Match", "Prefer", "X-Request-ID"],
        expose_headers=["ETag", REPLAYED, "Location", "Preference-Applied", "Retry-After", "X-Request-ID"],
        allow_credentials=True,
    )
