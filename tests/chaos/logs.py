"""What the processes wrote: an outage may be told, anything else that looks like a mistake of ours may not be there."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

#: Errors that only say that the other side was gone, ended or too slow.
OUTAGES = frozenset(
    {
        "BrokenPipeError", "CancelledError", "ConnectionError", "ConnectionRefusedError", "ConnectionResetError",
        "KeyboardInterrupt", "OSError", "TimeoutError",
        # Postgres and its driver
        "AdminShutdownError", "CannotConnectNowError", "ConnectionDoesNotExistError", "ConnectionFailureError",
        "CrashShutdownError", "IdleInTransactionSessionTimeoutError", "InterfaceError", "InternalClientError",
        "LockNotAvailableError", "QueryCanceledError",
        # Temporal
        "RPCError", "RPCTimeoutOrCancelledError",
    }
)  # fmt: skip
#: Lines that are a mistake of ours whatever else they say.
NEVER = re.compile(
    r"nondeterminis|TMPRL1100|never awaited|[Uu]nhandled|stopped by itself|request failed|"
    r"Task was destroyed|message_not_rendered|channel_broke|core dumped|panicked|PANIC|parked"
)
#: Of Temporal's SDK, at the end of a worker whose local activities still have time-outs running: a task of its own
#: finds nobody to tell. Nothing comes of it.
_HARMLESS_PANIC = ("local_activities.rs", "receive half not dropped")
#: The line that ends a traceback, or a link of one: a class, and perhaps what it says.
_ENDING = re.compile(r"^(?:[A-Za-z_]\w*\.)*(?P<name>[A-Z]\w*[a-z]\w*)(?:: |$)")
#: SQLAlchemy's errors have the driver's as their cause, which is the one that counts.
_WRAPPER = re.compile(r"^sqlalchemy\.exc\.(?:DBAPIError|InterfaceError|InternalError|OperationalError)\b")


def complaints(log: Path) -> Counter[str]:
    """Each kind of line or traceback in this log that no outage explains, with how often it came."""
    found: Counter[str] = Counter()
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    for line, following in pairwise([*lines, ""]):
        harmless = _HARMLESS_PANIC[0] in line and _HARMLESS_PANIC[1] in following
        if NEVER.search(line) and not harmless:
            found[_shortened(line)] += 1
    for chain in _tracebacks(lines):
        if not is_outage(chain):
            found[f"traceback: {_shortened(chain[-1])}"] += 1
    return found


def is_outage(chain: list[str]) -> bool:
    """Does a traceback with these endings, the first cause first, tell of an outage?"""
    names = [match["name"] for match in map(_ENDING.match, chain) if match]
    if _WRAPPER.match(chain[-1]):
        return not OUTAGES.isdisjoint(names[:-1])
    return names[-1] in OUTAGES


def _tracebacks(lines: list[str]) -> Iterator[list[str]]:
    """The endings of each traceback and of its causes, plain or within a JSON line."""
    plain: list[str] = []
    for line in [*lines, "{}"]:
        if line.startswith("{"):
            yield from _chain(plain)
            yield from _chain(_told_in(line))
            plain = []
        elif plain or "Traceback (most recent call last)" in line:
            plain.append(line)


def _told_in(line: str) -> list[str]:
    try:
        return (json.loads(line).get("exception") or "").splitlines()
    except ValueError:
        # Cut off where the process was killed.
        return []


def _chain(told: list[str]) -> Iterator[list[str]]:
    if endings := [line for line in told if _ENDING.match(line)]:
        yield endings


def _shortened(line: str) -> str:
    """Without what differs from one to the next."""
    line = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "<id>", line.strip())
    line = re.sub(r'"timestamp":"[^"]*"|\d{4}-\d\d-\d\dT[\d:.]+Z?', "", line)
    return re.sub(r"\d{2,}", "<n>", line)[:400]
