"""The dispatch of one work order, from its creation to its end.

Postgres decides, the workflow remembers: `advance` settles what is due and says what to wait for; then a signal or the
timer, whichever comes first, and again. A lost or repeated signal does no harm, since `advance` reads the truth.
"""

from __future__ import annotations

from datetime import timedelta

import msgspec
from temporalio import workflow
from temporalio.common import SearchAttributeKey
from temporalio.exceptions import ApplicationError, FailureError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.dispatch import DispatchActivities, OpsAction, Step, WorkOrderRef
    from workflows.policies import OPS, PATIENT, QUICK, TIMER_MARGIN

ORGANIZATION = SearchAttributeKey.for_keyword("OrganizationId")
KIND = SearchAttributeKey.for_keyword("WorkOrderKind")
STATUS = SearchAttributeKey.for_keyword("WorkOrderStatus")
DRIVER = SearchAttributeKey.for_keyword("DriverId")
REFERENCE = SearchAttributeKey.for_keyword("Reference")
#: What the search attribute tells apart besides the end. The steps in the field are the board's business, and an upsert
#: for each would cost a workflow task.
SHOWN = ("pending", "assigned")


class DispatchInput(msgspec.Struct, frozen=True, kw_only=True):
    """`shown_status` is what the search attributes say already; a continued run does not set them again."""

    work_order_id: str
    shown_status: str = "pending"


@workflow.defn
class DispatchWorkflow:
    @workflow.init
    def __init__(self, work: DispatchInput) -> None:
        self.work = work
        self.shown_status = work.shown_status
        self.step = Step(status=work.shown_status, waits_for="its first look")
        self.signals = 0
        #: What the next look follows from; its summary in the UI.
        self.because = "start"

    @workflow.run
    async def run(self, work: DispatchInput) -> str:
        while True:
            heard = self.signals
            self.step = await self.advance()
            self.show()
            if self.step.ended:
                await workflow.wait_condition(workflow.all_handlers_finished)
                return self.step.status
            await self.something_happens(since=heard)
            if workflow.info().is_continue_as_new_suggested():
                await workflow.wait_condition(workflow.all_handlers_finished)
                workflow.continue_as_new(
                    DispatchInput(work_order_id=work.work_order_id, shown_status=self.shown_status)
                )

    async def advance(self) -> Step:
        """Settle, match, and learn what to wait for."""
        ref = WorkOrderRef(work_order_id=self.work.work_order_id)
        try:
            return await workflow.execute_local_activity_method(
                DispatchActivities.advance, ref, summary=self.because, **QUICK
            )
        except FailureError as error:
            # Not only ActivityError: a local activity that has used up its attempts raises its own error, unwrapped.
            if is_cancelled_exception(error):
                raise
            return await workflow.execute_activity_method(
                DispatchActivities.advance, ref, summary="advance, once the database is back", **PATIENT
            )

    async def something_happens(self, *, since: int) -> None:
        """A signal came, or the step's time is up."""
        timeout: timedelta | None = None
        if self.step.wait_s is not None:
            timeout = timedelta(seconds=self.step.wait_s) + TIMER_MARGIN
        try:
            await workflow.wait_condition(
                lambda: self.signals != since, timeout=timeout, timeout_summary=self.step.waits_for
            )
        except TimeoutError:
            self.because = "time is up"

    def show(self) -> None:
        """What ops see: the offer chain as the run's details, the status and driver as search attributes."""
        step = self.step
        now = f"**{step.status}**" if step.ended else f"**{step.status}**, waits for {step.waits_for}"
        workflow.set_current_details("\n".join([now, "", *step.chain]))
        if step.status != self.shown_status and (step.ended or step.status in SHOWN):
            self.shown_status = step.status
            driver = DRIVER.value_set(step.driver_id) if step.driver_id else DRIVER.value_unset()
            workflow.upsert_search_attributes([STATUS.value_set(step.status), driver])

    # Signals are named for what happened. Each only wakes the loop.

    @workflow.signal
    def accepted(self) -> None:
        self._hear("accepted")

    @workflow.signal
    def rejected(self) -> None:
        self._hear("rejected")

    @workflow.signal
    def assigned(self) -> None:
        self._hear("assigned")

    @workflow.signal
    def unassigned(self) -> None:
        self._hear("unassigned")

    @workflow.signal
    def reoffered(self) -> None:
        self._hear("reoffered")

    @workflow.signal
    def status_changed(self) -> None:
        self._hear("status_changed")

    @workflow.signal
    def cancelled(self) -> None:
        self._hear("cancelled")

    @workflow.signal
    def driver_available(self) -> None:
        self._hear("driver_available")

    def _hear(self, what: str) -> None:
        self.signals += 1
        self.because = what

    # Updates are for ops, in the UI or by CLI: the same commands as over HTTP, with who asked for the audit.

    @workflow.update
    async def assign(self, request: OpsAction) -> Step:
        return await self._act("assign", request)

    @assign.validator
    def _may_assign(self, request: OpsAction) -> None:
        self._check(request)
        if not request.driver_id:
            raise ApplicationError("driver_id is missing", type="ValidationFailed", non_retryable=True)

    @workflow.update
    async def unassign(self, request: OpsAction) -> Step:
        return await self._act("unassign", request)

    @unassign.validator
    def _may_unassign(self, request: OpsAction) -> None:
        self._check(request)

    @workflow.update
    async def reoffer(self, request: OpsAction) -> Step:
        return await self._act("reoffer", request)

    @reoffer.validator
    def _may_reoffer(self, request: OpsAction) -> None:
        self._check(request)

    @workflow.update
    async def cancel(self, request: OpsAction) -> Step:
        return await self._act("cancel", request)

    @cancel.validator
    def _may_cancel(self, request: OpsAction) -> None:
        self._check(request)

    def _check(self, request: OpsAction) -> None:
        if not request.actor:
            raise ApplicationError("actor is missing: say who asks", type="ValidationFailed", non_retryable=True)
        if self.step.ended:
            raise ApplicationError(f"the work order is {self.step.status}", type="IllegalTransition")

    async def _act(self, action: str, request: OpsAction) -> Step:
        asked = msgspec.structs.replace(request, work_order_id=self.work.work_order_id, action=action)
        await workflow.execute_activity_method(
            DispatchActivities.act_for_ops, asked, summary=f"{action}, asked by {request.actor}", **OPS
        )
        self._hear(action)
        return await self.advance()

    @workflow.query
    def state(self) -> Step:
        return self.step

    @workflow.query
    def offer_chain(self) -> list[str]:
        return self.step.chain
