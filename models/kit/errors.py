"""Refusals: what the business says no to, each with its own class.

`rules` and `commands` raise them; an activity carries one as a non-retryable error by its class name; `api/errors.py`
maps each to an HTTP status in one table.

    Refusal
    ├── NotFound, Forbidden, ValidationFailed, PreconditionFailed, PreconditionRequired   (here)
    ├── Unauthenticated and its kin                                                       (models/identity/rules.py)
    ├── IllegalTransition, WorkOrderCancelled, DriverBusy, ..                             (models/work/rules.py)
    └── OfferTaken, OfferExpired, OfferAlreadyAccepted, ..                                (models/offers/rules.py)
"""

from __future__ import annotations

import re
from typing import Any, ClassVar


class Refusal(Exception):
    """A request that the business turns down. `code` is the class name in UPPER_SNAKE; `details` is JSON-ready."""

    message: ClassVar[str] = "The request was refused"
    code: ClassVar[str] = "REFUSED"

    def __init_subclass__(cls) -> None:
        cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).upper()

    def __init__(self, message: str | None = None, **details: Any) -> None:
        super().__init__(message or self.message)
        self.details = details


class NotFound(Refusal):
    """The thing does not exist, or belongs to another tenant: the two answers never differ."""

    message = "Not found"


class Forbidden(Refusal):
    message = "You may not do this"


class ValidationFailed(Refusal):
    """Bad input. `field_errors` maps a dotted field path to its messages."""

    message = "Validation failed"

    def __init__(self, field_errors: dict[str, list[str]]) -> None:
        super().__init__(None, fieldErrors=field_errors)


class PreconditionRequired(Refusal):
    message = "Send If-Match with the version you read"


class PreconditionFailed(Refusal):
    message = "The resource has changed since you read it"


class Unavailable(Refusal):
    """A service we stand on is out; the caller may try again."""

    message = "The service is briefly unavailable, try again"
