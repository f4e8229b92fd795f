"""A driver's state: what is stored is will (`duty`) and load; what is shown is computed."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from models.kit.errors import Refusal
from models.work.rules import WorkOrderStatus


class Duty(StrEnum):
    ON = "on"
    BREAK = "break"
    OFF = "off"


class DriverStatus(StrEnum):
    OFFLINE = "offline"
    BREAK = "break"
    AVAILABLE = "available"
    ASSIGNED = "assigned"
    EN_ROUTE = "en_route"
    ON_JOB = "on_job"


class Availability(StrEnum):
    AVAILABLE = "available"
    BUSY = "busy"
    UNAVAILABLE = "unavailable"


#: How far along each state of held work brings its driver.
_PROGRESS = {
    WorkOrderStatus.ASSIGNED: DriverStatus.ASSIGNED,
    WorkOrderStatus.EN_ROUTE: DriverStatus.EN_ROUTE,
    WorkOrderStatus.ARRIVED: DriverStatus.ON_JOB,
    WorkOrderStatus.IN_PROGRESS: DriverStatus.ON_JOB,
}
_ORDER = [DriverStatus.ASSIGNED, DriverStatus.EN_ROUTE, DriverStatus.ON_JOB]

#: What a driver may set, and what staff may set (their older words included), as duty. None: a flag, not a duty.
DUTY_OF = {
    "available": Duty.ON,
    "break": Duty.BREAK,
    "offline": Duty.OFF,
    "unavailable": Duty.OFF,
}
DRIVER_MAY_SET = ("available", "break", "offline")
STAFF_MAY_SET = ("available", "break", "offline", "unavailable", "busy")


def shown_status(duty: Duty, held: Iterable[WorkOrderStatus], *, staff_busy: bool = False) -> DriverStatus:
    """The status to show: off and break as set, else the furthest of the work held, else available."""
    if duty is Duty.OFF:
        return DriverStatus.OFFLINE
    if duty is Duty.BREAK:
        return DriverStatus.BREAK
    progress = [_PROGRESS[status] for status in held if status in _PROGRESS]
    if progress:
        return max(progress, key=_ORDER.index)
    return DriverStatus.ASSIGNED if staff_busy else DriverStatus.AVAILABLE


def availability(duty: Duty, active_count: int, *, staff_busy: bool = False) -> Availability:
    if duty is not Duty.ON:
        return Availability.UNAVAILABLE
    return Availability.BUSY if active_count > 0 or staff_busy else Availability.AVAILABLE


class DriverBusy(Refusal):
    message = "The driver holds as much work as they may"


class DriverHasOffer(Refusal):
    message = "The driver is answering another offer right now"


class DriverNotEligible(Refusal):
    message = "This driver cannot take work now"


class DriverHoldsWork(Refusal):
    message = "The driver still holds work"
