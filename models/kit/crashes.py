"""Named instants at which a process can be told to die, to show that whatever it was doing is done once and only once.

Each stands between two steps that a crash could tear apart. `DEV_CRASH_AT` arms one of them, in development only; tests
go through all of them (tests/chaos/test_crash_points.py).
"""

from __future__ import annotations

import os
import signal
from typing import Final

POINTS: Final = frozenset(
    {
        # A request: all is written but not committed; committed, with what follows undone; committed, and not answered.
        "transaction.flushed",
        "transaction.committed",
        "answer.committed",
        # The workflow's activities: after each commit, before the next step knows of it.
        "advance.settled",
        "advance.matched",
        "advance.done",
        "ops.committed",
        # The relay: wakes leased, sent, recorded.
        "relay.leased",
        "relay.sent",
        "relay.recorded",
        # The sender of messages: the same, with a provider at the other end.
        "drain.leased",
        "drain.sent",
        "drain.recorded",
        # The audit sealer.
        "sealer.sealed",
        "sealer.committed",
    }
)

_armed: str | None = None


def arm(point: str) -> None:
    """Die at this point when it is reached; an empty one means nowhere. Raises KeyError for one that there is not."""
    global _armed  # noqa: PLW0603 - one process, one death
    if point and point not in POINTS:
        raise KeyError(point)
    _armed = point or None


def crash_at(point: str) -> None:
    """Here a crash would matter. Costs a comparison where nothing is armed."""
    if _armed is not None and _armed == point:
        os.kill(os.getpid(), signal.SIGKILL)
