"""What the dispatch workflow has the database do: one short transaction at a time, safe to run twice or at once."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec
from temporalio import activity
from temporalio.exceptions import ApplicationError

from models.fairness.matching import LaneBusy, match_next, still_waits
from models.kit.database import Actor, Database
from models.kit.errors import NotFound, Refusal
from models.offers.rules import OfferMode, OfferStatus
from models.policies.rules import Policy
from models.work.commands import assign_driver, cancel, reoffer, unassign
from models.work.progress import look, settle
from models.work.rules import ENDED, WorkOrderStatus
from models.work.timeline import Due, OfferView, WorkView, due_now, next_due

WORKFLOW = Actor(kind="workflow")


class WorkOrderRef(msgspec.Struct, frozen=True, kw_only=True):
    """The input of `advance`."""

    work_order_id: str


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Where a work order stands and what its workflow waits for.

    `wait_s` is by the database's clock, after its locks; null waits for a signal alone. `chain` is the offer chain so
    far, a line each; drivers appear by their reference, never by name.
    """

    status: str
    waits_for: str
    wait_s: float | None = None
    driver_id: str | None = None
    chain: list[str] = []
    ended: bool = False


class OpsAction(msgspec.Struct, frozen=True, kw_only=True):
    """What ops ask of a workflow by an Update. `actor` is who asks, for the audit: a user's id or an ops name."""

    work_order_id: str = ""
    action: Literal["assign", "unassign", "reoffer", "cancel"] = "cancel"
    actor: str = ""
    driver_id: str | None = None
    mode: Literal["offer", "force"] = "offer"
    reason: str | None = None


class DispatchActivities:
    """Activities of the dispatch task queue, over one database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @activity.defn
    async def advance(self, ref: WorkOrderRef) -> Step:
        """Settle what is due, match in the lane, and say what to wait for."""
        work_order_id = UUID(ref.work_order_id)
        seen = await self._look(work_order_id)
        if seen is None:
            return Step(status="gone", waits_for="nothing: the work order does not exist", ended=True)
        view, policy = seen
        due = due_now(view, policy)
        if not due:
            return step_of(view, next_due(view, policy))
        if due - {Due.MATCH}:
            async with self.database.transaction(WORKFLOW) as session:
                await settle(session, work_order_id)
        if view.status is WorkOrderStatus.PENDING:
            await self._match(UUID(view.organization_id), work_order_id)
        seen = await self._look(work_order_id)
        assert seen is not None
        view, policy = seen
        return step_of(view, next_due(view, policy))

    async def _look(self, work_order_id: UUID) -> tuple[WorkView, Policy] | None:
        async with self.database.reading() as session:
            return await look(session, work_order_id)

    async def _match(self, organization_id: UUID, work_order_id: UUID) -> None:
        """Serve the lane, a pair a transaction, until this work order has its offer or nothing matches."""
        while True:
            try:
                async with self.database.transaction(WORKFLOW) as session:
                    matched = await match_next(session, organization_id, own=work_order_id)
            except LaneBusy:
                continue
            if matched is None or matched.work_order_id == work_order_id:
                return
            async with self.database.reading() as session:
                if not await still_waits(session, work_order_id):
                    return

    @activity.defn
    async def act_for_ops(self, request: OpsAction) -> None:
        """Carry out an Update. A refusal fails the Update under its own name and is not retried."""
        work_order_id = UUID(request.work_order_id)
        actor = Actor(kind="workflow", user_id=_user_id(request.actor), request_id=f"ops:{request.actor}"[:100])
        try:
            async with self.database.transaction(actor) as session:
                if request.action == "assign":
                    await assign_driver(session, work_order_id, _driver_id(request), request.mode)
                elif request.action == "unassign":
                    await unassign(session, work_order_id, request.reason)
                elif request.action == "reoffer":
                    await reoffer(session, work_order_id)
                else:
                    await cancel(session, work_order_id, request.reason)
        except Refusal as refusal:
            raise ApplicationError(
                str(refusal), refusal.details, type=type(refusal).__name__, non_retryable=True
            ) from refusal


def _user_id(actor: str) -> UUID | None:
    try:
        return UUID(actor)
    except ValueError:
        return None


def _driver_id(request: OpsAction) -> UUID:
    if request.driver_id is None:
        raise NotFound
    return UUID(request.driver_id)


def step_of(view: WorkView, ahead: tuple[datetime, Due] | None) -> Step:
    """What the workflow shows and waits for. Pure."""
    wait_s: float | None = None
    if ahead is not None:
        at, _ = ahead
        wait_s = max(0.0, (at - view.now).total_seconds())
    return Step(
        status=view.status.value,
        waits_for=_waits_for(view, ahead[1] if ahead else None),
        wait_s=wait_s,
        driver_id=view.assigned_driver_id,
        chain=[line_of(offer) for offer in view.offers],
        ended=view.status in ENDED,
    )


def _waits_for(view: WorkView, due: Due | None) -> str:
    if view.status is not WorkOrderStatus.PENDING:
        return due.value if due else "the driver"
    pending = view.pending
    if pending:
        who = pending[0].driver if len(pending) == 1 else f"{len(pending)} drivers"
        return f"answer of {who}, {due.value if due else 'no limit'}"
    if view.manual:
        return "a dispatcher to name a driver"
    if view.match_from is not None and view.match_from > view.now:
        return f"its time: {view.match_from:%Y-%m-%d %H:%M} UTC"
    return f"an eligible driver ({view.nobody_reasons or 'none yet'})"


def line_of(offer: OfferView) -> str:
    """`2. DR-1007 sequential, offered 08:12:31, expired (timeout) 08:17:31`."""
    line = f"{offer.sequence}. {offer.driver} {offer.mode.value}, offered {offer.offered_at:%H:%M:%S}"
    if offer.status is OfferStatus.PENDING:
        return f"{line}, open until {offer.expires_at:%H:%M:%S}"
    if offer.mode in (OfferMode.AUTO, OfferMode.FORCE):
        return f"{offer.sequence}. {offer.driver} assigned ({offer.mode.value}) {offer.offered_at:%H:%M:%S}"
    why = f" ({offer.reason})" if offer.reason else ""
    return f"{line}, {offer.status.value}{why} {offer.responded_at:%H:%M:%S}"
