"""The table of transitions: what it allows, and that nothing else gets through."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from models.drivers.rules import Availability, DriverStatus, Duty, availability, shown_status
from models.offers.rules import (
    OfferAlreadyAccepted,
    OfferAlreadyRejected,
    OfferExpired,
    OfferReason,
    OfferStatus,
    OfferTaken,
    refusal_of_late_answer,
)
from models.work.rules import (
    ENDED,
    HELD,
    KIND_TRANSITIONS,
    TRANSITIONS,
    UNDER_WAY,
    IllegalTransition,
    WorkKind,
    WorkOrderCancelled,
    WorkOrderStatus,
    allowed,
    check_transition,
)

S = WorkOrderStatus

#: Written out once more by hand, from the specification.
EVERY_KIND = {
    ("pending", "assigned"), ("assigned", "en_route"), ("en_route", "arrived"), ("arrived", "in_progress"),
    ("in_progress", "completed"), ("pending", "cancelled"), ("assigned", "cancelled"), ("en_route", "cancelled"),
    ("arrived", "cancelled"), ("in_progress", "cancelled"), ("assigned", "pending"), ("en_route", "pending"),
    ("completed", "disputed"), ("disputed", "completed"),
}  # fmt: skip
ONE_KIND = {WorkKind.ENROLLMENT: {("assigned", "completed")}, WorkKind.ORDER: {("pending", "expired")}}


def legal(kind: WorkKind) -> set[tuple[str, str]]:
    return EVERY_KIND | ONE_KIND.get(kind, set())


def test_the_table_names_every_state_once() -> None:
    assert set(TRANSITIONS) == set(S)
    assert HELD | ENDED | {S.PENDING} == set(S)
    assert not HELD & ENDED
    assert UNDER_WAY < HELD
    assert all(set(steps) <= set(S) for steps in KIND_TRANSITIONS.values())


@pytest.mark.parametrize("kind", WorkKind)
@pytest.mark.parametrize(("current", "target"), list(product(S, S)))
def test_a_step_is_taken_or_refused_with_what_is_allowed(kind: WorkKind, current: S, target: S) -> None:
    if (current.value, target.value) in legal(kind):
        check_transition(kind, current, target)
        return
    with pytest.raises(IllegalTransition) as refused:
        check_transition(kind, current, target)
    assert refused.value.code == "ILLEGAL_TRANSITION"
    assert refused.value.details == {
        "from": current.value,
        "to": target.value,
        "allowed": [s.value for s in allowed(kind, current)],
    }
    assert {(current.value, s) for s in refused.value.details["allowed"]} <= legal(kind)


class LifeOfAWorkOrder(RuleBasedStateMachine):
    """Any sequence of attempts: what is refused changes nothing, and what is told afterwards is a lawful life."""

    def __init__(self) -> None:
        super().__init__()
        self.kind = WorkKind.JOB
        self.life = [S.PENDING]

    @initialize(kind=st.sampled_from(WorkKind))
    def of_a_kind(self, kind: WorkKind) -> None:
        self.kind = kind

    @rule(target_status=st.sampled_from(S))
    def try_to_go(self, target_status: S) -> None:
        try:
            check_transition(self.kind, self.life[-1], target_status)
        except IllegalTransition:
            return
        self.life.append(target_status)

    @rule(choice=st.randoms(use_true_random=False))
    def go_somewhere(self, choice: object) -> None:
        options = allowed(self.kind, self.life[-1])
        if options:
            target = options[choice.randrange(len(options))]  # type: ignore[attr-defined]
            check_transition(self.kind, self.life[-1], target)
            self.life.append(target)

    @invariant()
    def every_pair_is_legal(self) -> None:
        pairs = {(a.value, b.value) for a, b in zip(self.life, self.life[1:], strict=False)}
        assert pairs <= legal(self.kind)

    @invariant()
    def an_end_is_an_end(self) -> None:
        for ended in (S.CANCELLED, S.EXPIRED):
            assert ended not in self.life[:-1]
        if S.COMPLETED in self.life:
            assert set(self.life[self.life.index(S.COMPLETED) :]) <= {S.COMPLETED, S.DISPUTED}

    @invariant()
    def nobody_arrives_without_setting_out(self) -> None:
        if S.ARRIVED in self.life:
            before = self.life[: self.life.index(S.ARRIVED)]
            assert before[-2:] == [S.ASSIGNED, S.EN_ROUTE]


TestLifeOfAWorkOrder = LifeOfAWorkOrder.TestCase
TestLifeOfAWorkOrder.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


# What is shown of a driver


@pytest.mark.parametrize(
    ("duty", "held", "staff_busy", "status"),
    [
        (Duty.OFF, [S.IN_PROGRESS], False, DriverStatus.OFFLINE),
        (Duty.BREAK, [S.ASSIGNED], False, DriverStatus.BREAK),
        (Duty.ON, [], False, DriverStatus.AVAILABLE),
        (Duty.ON, [], True, DriverStatus.ASSIGNED),
        (Duty.ON, [S.ASSIGNED], False, DriverStatus.ASSIGNED),
        (Duty.ON, [S.ASSIGNED, S.EN_ROUTE], False, DriverStatus.EN_ROUTE),
        (Duty.ON, [S.ARRIVED, S.ASSIGNED], False, DriverStatus.ON_JOB),
        (Duty.ON, [S.EN_ROUTE, S.IN_PROGRESS], False, DriverStatus.ON_JOB),
        (Duty.ON, [S.COMPLETED], False, DriverStatus.AVAILABLE),
    ],
)
def test_a_driver_shows_the_furthest_of_the_work_held(
    duty: Duty, held: list[S], staff_busy: bool, status: DriverStatus
) -> None:
    assert shown_status(duty, held, staff_busy=staff_busy) is status


@pytest.mark.parametrize(
    ("duty", "active", "staff_busy", "expected"),
    [
        (Duty.ON, 0, False, Availability.AVAILABLE),
        (Duty.ON, 1, False, Availability.BUSY),
        (Duty.ON, 0, True, Availability.BUSY),
        (Duty.BREAK, 1, False, Availability.UNAVAILABLE),
        (Duty.OFF, 0, True, Availability.UNAVAILABLE),
    ],
)
def test_availability_is_will_before_load(duty: Duty, active: int, staff_busy: bool, expected: Availability) -> None:
    assert availability(duty, active, staff_busy=staff_busy) is expected


# What a late answer hears

A, R, E = OfferStatus.ACCEPTED, OfferStatus.REJECTED, OfferStatus.EXPIRED


@pytest.mark.parametrize(
    ("status", "reason", "answer", "refusal"),
    [
        (A, None, A, None),
        (R, None, R, None),
        (A, None, R, OfferAlreadyAccepted),
        (R, None, A, OfferAlreadyRejected),
        *((E, OfferReason.TIMEOUT, answer, OfferExpired) for answer in (A, R)),
        *((E, OfferReason.DRIVER_UNAVAILABLE, answer, OfferExpired) for answer in (A, R)),
        *((E, OfferReason.SUPERSEDED, answer, OfferTaken) for answer in (A, R)),
        *((E, OfferReason.CANCELLED, answer, WorkOrderCancelled) for answer in (A, R)),
    ],
)
def test_every_late_answer_has_its_refusal(
    status: OfferStatus, reason: OfferReason | None, answer: OfferStatus, refusal: type[Exception] | None
) -> None:
    assert type(refusal_of_late_answer(status, reason, answer=answer)) is (refusal or type(None))
