"""Answering those who create work: 201 at once, or when the first offer is out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from litestar import Request, Response
from sqlalchemy.exc import SQLAlchemyError

from api.dependencies import transaction_of, wait_preference
from api.guards import GRACE_S
from api.idempotency import settle
from api.locations import Location
from api.work_orders import detail
from api.work_shapes import WorkOrderDetail
from models.identity.permissions import Caller
from models.kit.database import Database, Session
from models.kit.ids import UUID
from models.work import queries
from models.work.creating import Point

_POLL_S: Final = 0.05


def point_of(location: Location | None) -> Point | None:
    return Point(location.lat, location.lng) if location else None


async def made(
    request: Request[Any, Any, Any],
    database: Database,
    caller: Caller,
    create: Callable[[Session], Awaitable[UUID]],
) -> Response[Any]:
    """Create, commit and answer 201. With `Prefer: wait=N`, only when the first offer is out or N seconds are over."""
    async with transaction_of(request) as session:
        work_order_id = await create(session)
        work_order = await detail(session, caller, work_order_id, is_new=True)
    headers = {"Location": f"{request.url.path.rstrip('/')}/{work_order_id}"}
    if wait := wait_preference(request):
        headers["Preference-Applied"] = f"wait={wait}"
        await settle(request, _created(work_order, headers))
        request.scope["state"][GRACE_S] = wait
        # The work exists, whatever becomes of the wait for its offer: an error would have it created twice.
        with contextlib.suppress(SQLAlchemyError, OSError):
            await _first_offer(database, work_order_id, wait)
            async with database.reading() as session:
                work_order = await detail(session, caller, work_order_id)
    return _created(work_order, headers)


def _created(work_order: WorkOrderDetail, headers: dict[str, str]) -> Response[WorkOrderDetail]:
    return Response(work_order, status_code=201, headers=headers | {"ETag": f'"{work_order.version}"'})


async def _first_offer(database: Database, work_order_id: UUID, wait_s: float) -> None:
    """Look every 50 ms, and hold no connection meanwhile."""
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        async with database.reading() as session:
            if await queries.is_under_way(session, work_order_id):
                return
        await asyncio.sleep(min(_POLL_S, max(0.0, until - time.monotonic())))
