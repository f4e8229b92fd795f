"""Times as bodies and queries give them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec

from models.kit.errors import ValidationFailed

#: RFC 3339 with an offset: without one, nobody knows which instant is meant.
Instant = Annotated[datetime, msgspec.Meta(tz=True, description="RFC 3339 with an offset")]

#: Far wider than anyone plans, and narrow enough that neither an offset nor a lead time leaves the calendar.
_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(2100, 1, 1, tzinfo=UTC)


def checked_instant(field: str, instant: datetime | None) -> datetime | None:
    """The instant in UTC; without an offset (queries may leave it out) it is taken to be. Raises ValidationFailed."""
    if instant is None:
        return None
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    if not _EARLIEST <= instant < _LATEST:
        raise ValidationFailed({field: ["Must be between the years 2000 and 2099"]})
    return instant.astimezone(UTC)
