"""Health: alive without looking at anything, and ready with all it stands on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from functools import cache
from typing import Any, Final, Literal

import msgspec
from litestar import Response, get
from litestar.datastructures import State
from litestar.openapi.datastructures import ResponseSpec
from sqlalchemy import text
from temporalio.client import Client
from temporalio.service import RPCError

import migrations
from api.guards import PUBLIC
from models.kit.database import Database
from models.kit.settings import Settings
from workflows.client import connect

#: Each check has this long; together, since they run side by side, they have no longer.
CHECK_LIMIT_S: Final = 1.0


class Health(msgspec.Struct):
    status: Literal["ok"]


class Readiness(msgspec.Struct):
    """`out` says for each part that is out what is wrong with it; empty when ready."""

    status: Literal["ok", "unavailable"]
    out: dict[str, str]


class NotReady(Exception):
    """A check failed; the text says how, without addresses."""


@get("/health", operation_id="Health", summary="Is the process alive", tags=["Health"], opt=PUBLIC)
async def health() -> Health:
    """Answers without asking anyone."""
    return Health("ok")


@get("/health", operation_id="HealthV1", summary="Is the process alive", tags=["Health"], opt=PUBLIC)
async def health_v1() -> Health:
    """The same as `/health`, for clients that only know one base address."""
    return Health("ok")


@get(
    "/health/ready",
    operation_id="Ready",
    summary="Is everything up that it needs",
    tags=["Health"],
    opt=PUBLIC,
    responses={503: ResponseSpec(Readiness, generate_examples=False, description="What is out")},
)
async def ready(state: State) -> Response[Readiness]:
    """200, or 503 with what is out: Postgres, its migrations, Temporal. Answers within 1.5 s even when all are dead."""
    out = await whats_out(
        {
            "postgres": _check_postgres(state.database),
            "migrations": _check_migrations(state.database),
            "temporal": _check_temporal(state.settings, state),
        }
    )
    if out.get("postgres"):
        # Nothing can be said of them, and one cause needs one line.
        out.pop("migrations", None)
    if out:
        return Response(Readiness("unavailable", out), status_code=503, headers={"Retry-After": "1"})
    return Response(Readiness("ok", out))


async def whats_out(checks: dict[str, Coroutine[Any, Any, None]], limit_s: float = CHECK_LIMIT_S) -> dict[str, str]:
    """Run the checks side by side, and tell of those that failed or did not end in time. The late ones are cancelled
    and not waited for: taking back a question to a dead server may take longer than the question."""
    tasks = {name: asyncio.create_task(check) for name, check in checks.items()}
    await asyncio.wait(tasks.values(), timeout=limit_s)
    out = {}
    for name, task in tasks.items():
        if not task.done():
            _let_go(task)
            out[name] = f"no answer within {limit_s:g} s"
        elif (error := task.exception()) is not None:
            out[name] = str(error) if isinstance(error, NotReady) else type(error).__name__
    return out


_abandoned: Final[set[asyncio.Task[None]]] = set()


def _let_go(task: asyncio.Task[None]) -> None:
    """Cancel without waiting. The set keeps the task from being collected half way; its end, whichever, is of no
    interest any more."""
    _abandoned.add(task)
    task.add_done_callback(_abandoned.discard)
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    task.cancel()


async def _check_postgres(database: Database) -> None:
    async with database.engine.connect() as connection:
        await connection.execute(text("SELECT 1"))


async def _check_migrations(database: Database) -> None:
    async with database.engine.connect() as connection:
        present = (await connection.execute(text("SELECT to_regclass('alembic_version') IS NOT NULL"))).scalar()
        revision = None
        if present:
            revision = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar()
    if revision != _head():
        raise NotReady(
            f"the database stands at {revision or 'nothing'}, this code at {_head()}: run `fairlead migrate`"
        )


@cache
def _head() -> str:
    return migrations.head()


async def _check_temporal(settings: Settings, state: State) -> None:
    client: Client | None = state.get("health_client")
    if client is None:
        client = state.health_client = await connect(settings, lazy=True)
    try:
        serving = await client.service_client.check_health(retry=False, timeout=timedelta(seconds=CHECK_LIMIT_S))
    except (RPCError, RuntimeError) as error:
        raise NotReady("does not answer") from error
    if not serving:
        raise NotReady("not serving")
