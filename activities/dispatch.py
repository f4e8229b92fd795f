"""What the dispatch workflow has the database do: one short transaction at a time, safe to run twice or at once.

An outage is retried for ever. What fails by a mistake of ours is counted against the work order that it is about, and
parked in the end: then its workflow waits for ops, and the lane for nobody.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final, Literal
from uuid import UUID
from weakref import WeakValueDictionary

import msgspec
import structlog
from temporalio import activity
from temporalio.exceptions import ApplicationError

from models.fairness.matching import LaneBusy, Matched, ServingFailed, match_next, still_waits
from models.idempotency.commands import claim, keep
from models.idempotency.rules import IdempotencyInProgress, KeptAnswer, KeyedRequest
from models.kit.crashes import crash_at
from models.kit.database import Actor, Database, Session
from models.kit.errors import NotFound, Refusal
from models.kit.outages import is_outage, without_values
from models.kit.sql import Sql
from models.offers.rules import OfferMode, OfferStatus
from models.policies.rules import Policy
from models.work.commands import assign_driver, cancel, reoffer, unassign
from models.work.progress import look, settle
from models.work.rules import ENDED, WorkOrderStatus
from models.work.stuck import PARK_AFTER, Standing, alert, count_failure, note_success, standing_of, take_out
from models.work.timeline import Due, OfferView, WorkView, due_now, next_due

log = structlog.get_logger(__name__)

WORKFLOW = Actor(kind="workflow")
_ORGANIZATION: Final = Sql("SELECT organization_id FROM work_orders WHERE id = :id")
#: How many failures of others one `advance` sits through, until each is parked, before it starts over.
MOST_FAILURES_OF_OTHERS: Final = 10 * PARK_AFTER


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
        #: In one process one match at a time in each lane. The others would only wait for the lane's row, each with a
        #: connection in its hands.
        self._lanes: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()

    @activity.defn
    async def advance(self, ref: WorkOrderRef) -> Step:
        """Settle what is due, match in the lane, and say what to wait for."""
        work_order_id = UUID(ref.work_order_id)
        try:
            return await self._advance(work_order_id)
        except ServingFailed as error:
            # Others' failures, and so many that this goes on in another attempt.
            raise _failure(error) from None
        except Exception as error:
            if is_outage(error):
                raise
            step = await self._over_or_charged(work_order_id, error)
            if step is None:
                raise _failure(error) from None
            return step

    async def _advance(self, work_order_id: UUID) -> Step:
        seen = await self._look(work_order_id)
        if seen is None:
            return Step(status="gone", waits_for="nothing: the work order does not exist", ended=True)
        view, policy = seen
        since = view.now
        has_failed = view.failures > 0
        due = due_now(view, policy)
        if due:
            if due - {Due.MATCH}:
                async with self.database.transaction(WORKFLOW) as session:
                    await settle(session, work_order_id)
                crash_at("advance.settled")
            if view.status is WorkOrderStatus.PENDING:
                await self._match(UUID(view.organization_id), work_order_id)
            seen = await self._look(work_order_id)
            assert seen is not None
            view, policy = seen
        if has_failed:
            async with self.database.reading() as session:
                await note_success(session, work_order_id)
        crash_at("advance.done")
        # All this may have taken longer than an offer lasts: a frozen worker, an outage waited out.
        return step_of(view, next_due(view, policy, since=since))

    async def _look(self, work_order_id: UUID) -> tuple[WorkView, Policy] | None:
        async with self.database.reading() as session:
            return await look(session, work_order_id)

    async def _match(self, organization_id: UUID, work_order_id: UUID) -> None:
        """Serve the lane, a pair a transaction, until this work order has its offer or nothing matches.

        What fails for another's sake is counted against that one, and tried again until it is parked. Raises
        ServingFailed when that takes too long."""
        failures_of_others = 0
        while True:
            matched: Matched | None = None
            try:
                async with self._lane(organization_id), self.database.transaction(WORKFLOW) as session:
                    matched = await match_next(session, organization_id, own=work_order_id)
            except LaneBusy:
                continue
            except Exception as error:
                culprit, cause = _blamed(error, matched)
                if is_outage(cause):
                    raise
                if culprit is None or culprit == work_order_id:
                    raise cause from cause.__cause__
                failures_of_others += 1
                if failures_of_others > MOST_FAILURES_OF_OTHERS:
                    raise ServingFailed(culprit) from cause
                await self._charge(culprit, cause)
                continue
            crash_at("advance.matched")
            if matched is None or matched.work_order_id == work_order_id:
                return
            async with self.database.reading() as session:
                if not await still_waits(session, work_order_id):
                    return

    def _lane(self, organization_id: UUID) -> asyncio.Lock:
        lane = self._lanes.get(organization_id)
        if lane is None:
            lane = self._lanes[organization_id] = asyncio.Lock()
        return lane

    async def _over_or_charged(self, work_order_id: UUID, error: Exception) -> Step | None:
        """Where there is nothing more to try, what the workflow does instead; None when there is, and it counts."""
        standing = await self._standing(work_order_id)
        if standing is not None and not standing.is_over:
            await self._charge(work_order_id, error)
            standing = await self._standing(work_order_id)
        return step_unseen(standing) if standing is not None and standing.is_over else None

    async def _standing(self, work_order_id: UUID) -> Standing | None:
        async with self.database.reading() as session:
            return await standing_of(session, work_order_id)

    async def _charge(self, work_order_id: UUID, error: Exception) -> None:
        """Count a failure against this work order, and park it when it is one too many."""
        told = without_values(error)
        try:
            async with self.database.transaction(WORKFLOW) as session:
                counted = await count_failure(session, work_order_id, told)
                if counted.parks:
                    await take_out(session, work_order_id)
                    await alert(session, work_order_id)
        except Exception as again:
            if is_outage(again):
                raise
            # What is wrong with it stands in the way of this too. That it is parked is what counts, so by itself.
            async with self.database.transaction(WORKFLOW) as session:
                counted = await count_failure(session, work_order_id, told)
            if counted.parks:
                await self._as_far_as_it_goes(take_out, work_order_id)
                await self._as_far_as_it_goes(alert, work_order_id)
        log.error(
            "advance_failed",
            work_order_id=str(work_order_id),
            failures=counted.failures,
            error=told,
            stack="".join(traceback.format_tb(error.__traceback__)),
        )
        if counted.parks:
            log.critical("work_parked", work_order_id=str(work_order_id), failures=counted.failures, error=told)

    async def _as_far_as_it_goes(self, do: Callable[[Session, UUID], Awaitable[None]], work_order_id: UUID) -> None:
        try:
            async with self.database.transaction(WORKFLOW) as session:
                await do(session, work_order_id)
        except Exception as error:
            if is_outage(error):
                raise
            told = without_values(error)
            log.critical("parking_incomplete", step=do.__name__, work_order_id=str(work_order_id), error=told)

    @activity.defn
    async def act_for_ops(self, request: OpsAction) -> None:
        """Carry out an Update, once, however often the activity is attempted. A refusal fails the Update under its own
        name and is not retried."""
        work_order_id = UUID(request.work_order_id)
        actor = Actor(kind="workflow", user_id=_user_id(request.actor), request_id=f"ops:{request.actor}"[:100])
        try:
            async with self.database.transaction(actor) as session:
                attempted = await _keyed(session, request.action, work_order_id)
                if await claim(session, attempted) is not None:
                    return
                keep(session, attempted, KeptAnswer(status=200, headers=[], body=b""))
                if request.action == "assign":
                    await assign_driver(session, work_order_id, _driver_id(request), request.mode)
                elif request.action == "unassign":
                    await unassign(session, work_order_id, request.reason)
                elif request.action == "reoffer":
                    await reoffer(session, work_order_id)
                else:
                    await cancel(session, work_order_id, request.reason)
            crash_at("ops.committed")
        except IdempotencyInProgress:
            # An attempt that was given up for dead is still at it; the next one learns how that ended.
            raise
        except Refusal as refusal:
            raise ApplicationError(
                str(refusal), refusal.details, type=type(refusal).__name__, non_retryable=True
            ) from refusal
        except Exception as error:
            if is_outage(error):
                raise
            raise _failure(error, non_retryable=True) from None


async def _keyed(session: Session, action: str, work_order_id: UUID) -> KeyedRequest:
    """This activity, whichever attempt it is. Raises NotFound."""
    this = activity.info()
    organization_id = await session.value(_ORGANIZATION, {"id": work_order_id})
    if organization_id is None:
        raise NotFound("No such work order")
    key = f"{this.workflow_run_id}/{this.activity_id}"
    return KeyedRequest(
        organization_id=organization_id, caller_id=work_order_id, method="UPDATE", route=action, key=key,
        fingerprint=b"",
    )  # fmt: skip


def _blamed(error: Exception, matched: Matched | None) -> tuple[UUID | None, Exception]:
    """Whose failure it is, where it is not the asking one's, and what went wrong."""
    if isinstance(error, ServingFailed) and isinstance(error.__cause__, Exception):
        return error.work_order_id, error.__cause__
    # What a choice writes goes out with the commit, and fails there.
    return matched.work_order_id if matched else None, error


def _failure(error: Exception, *, non_retryable: bool = False) -> ApplicationError:
    """The error as it may stand in a history: without its message, which likes to repeat the values of rows."""
    cause = error.__cause__ if isinstance(error, ServingFailed) and error.__cause__ else error
    return ApplicationError(without_values(cause), type=type(cause).__name__, non_retryable=non_retryable)


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


def step_unseen(standing: Standing) -> Step:
    """The same for a work order that has ended or is parked, and cannot be looked at. Pure."""
    ended = standing.status in ENDED
    return Step(
        status=standing.status.value,
        waits_for="nothing" if ended else parked(standing.failures, standing.parked_for or ""),
        driver_id=standing.driver_id,
        ended=ended,
    )


def parked(failures: int, error: str) -> str:
    return f"ops: parked after {failures} failures ({error}); fairlead stuck retry|drop"


def _waits_for(view: WorkView, due: Due | None) -> str:
    if view.parked_for is not None and view.status not in ENDED:
        return parked(view.failures, view.parked_for)
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
