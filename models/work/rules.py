"""Work orders: kinds, states and the one table of transitions."""

from __future__ import annotations

from enum import StrEnum

from models.kit.errors import Refusal


class WorkKind(StrEnum):
    ENROLLMENT = "enrollment"
    JOB = "job"
    ORDER = "order"
    ROUTE = "route"


REFERENCE_PREFIX = {WorkKind.ENROLLMENT: "EN", WorkKind.JOB: "JB", WorkKind.ORDER: "OR", WorkKind.ROUTE: "RT"}


class WorkOrderStatus(StrEnum):
    PENDING = "pending"
    ASSIGNED = "assigned"
    EN_ROUTE = "en_route"
    ARRIVED = "arrived"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DISPUTED = "disputed"


class Source(StrEnum):
    CUSTOMER = "customer"
    DISPATCHER = "dispatcher"
    API = "api"
    IMPORT = "import"


S = WorkOrderStatus

#: The transition table. API, workflow, UI and docs read it; `allowed` adds what only some kinds may do.
TRANSITIONS: dict[WorkOrderStatus, tuple[WorkOrderStatus, ...]] = {
    S.PENDING: (S.ASSIGNED, S.CANCELLED),
    S.ASSIGNED: (S.EN_ROUTE, S.PENDING, S.CANCELLED),
    S.EN_ROUTE: (S.ARRIVED, S.PENDING, S.CANCELLED),
    S.ARRIVED: (S.IN_PROGRESS, S.CANCELLED),
    S.IN_PROGRESS: (S.COMPLETED, S.CANCELLED),
    S.COMPLETED: (S.DISPUTED,),
    S.DISPUTED: (S.COMPLETED,),
    S.CANCELLED: (),
    S.EXPIRED: (),
}
KIND_TRANSITIONS: dict[WorkKind, dict[WorkOrderStatus, tuple[WorkOrderStatus, ...]]] = {
    WorkKind.ENROLLMENT: {S.ASSIGNED: (S.COMPLETED,)},
    WorkKind.ORDER: {S.PENDING: (S.EXPIRED,)},
}

#: States in which a driver holds the work.
HELD = frozenset({S.ASSIGNED, S.EN_ROUTE, S.ARRIVED, S.IN_PROGRESS})
#: States in which the driver has set out: the work counts as under way, whatever its schedule says.
UNDER_WAY = HELD - {S.ASSIGNED}
ENDED = frozenset({S.COMPLETED, S.CANCELLED, S.EXPIRED, S.DISPUTED})
#: What the assigned driver may report; the rest follows from commands of its own.
DRIVER_REPORTS = (S.EN_ROUTE, S.ARRIVED, S.IN_PROGRESS, S.COMPLETED)


class IllegalTransition(Refusal):
    """`details`: `{from, to, allowed}`."""

    message = "This work order cannot go there from its present state"

    def __init__(self, kind: WorkKind, current: WorkOrderStatus, target: WorkOrderStatus) -> None:
        super().__init__()
        # `from` is no keyword argument's name.
        self.details = {
            "from": current.value,
            "to": target.value,
            "allowed": [status.value for status in allowed(kind, current)],
        }


class WorkOrderCancelled(Refusal):
    message = "The work order was cancelled"


class WorkOrderNotWaiting(Refusal):
    message = "The work order is not waiting for a driver"


def allowed(kind: WorkKind, current: WorkOrderStatus) -> tuple[WorkOrderStatus, ...]:
    """The states that a work order of this kind may go to from `current`."""
    return TRANSITIONS[current] + KIND_TRANSITIONS.get(kind, {}).get(current, ())


def check_transition(kind: WorkKind, current: WorkOrderStatus, target: WorkOrderStatus) -> None:
    """Raise IllegalTransition with `{from, to, allowed}` unless the table has the step."""
    if target not in allowed(kind, current):
        raise IllegalTransition(kind, current, target)
