"""What clients did and what they were told, kept outside the processes under test.

Every request has an outcome: acknowledged (2xx), refused (4xx with a code), or unknown (connection lost, time-out,
5xx). What an answer makes certain is a fact; the checks hold the database to the facts.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, Self

import msgspec


class Outcome(StrEnum):
    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class Attempt(msgspec.Struct, kw_only=True, tag="attempt"):
    """One request. `operation` is shared by the attempts at one thing; times are seconds since 1970."""

    operation: int
    actor: str
    kind: str
    subject: str
    key: str | None
    sent_at: float
    answered_at: float = 0.0
    outcome: Outcome = Outcome.UNKNOWN
    status: int = 0
    code: str = ""


class Certain(StrEnum):
    """What a client can know for certain."""

    CREATED = "created"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    REPORTED = "reported"
    HANDED_BACK = "handed_back"
    CANCELLED = "cancelled"
    FORCED = "forced"


class Fact(msgspec.Struct, frozen=True, kw_only=True, tag="fact"):
    """It is true, and became so between `since` (the first attempt) and `told_at`."""

    what: Certain
    work_order_id: str
    since: float
    told_at: float
    #: Of a creation.
    marker: str = ""
    offer_id: str = ""
    driver_id: str = ""
    #: Of a report.
    status: str = ""


class Creation(msgspec.Struct, kw_only=True):
    """A work order that a client asked for. `marker` stands in the work order and nowhere else."""

    marker: str
    kind: str
    path: str
    body: dict[str, Any]
    key: str
    creator: Any
    work_order_id: str | None = None
    ended: bool = False


class Ledger:
    """All of a run. Each attempt and fact also goes to `file`, a JSON object a line."""

    def __init__(self, file: Path) -> None:
        self.attempts: list[Attempt] = []
        self.facts: list[Fact] = []
        self.creations: dict[str, Creation] = {}
        #: Which work orders the answers to replayed creations named, by marker.
        self.replayed: dict[str, set[str]] = {}
        self.in_flight: Counter[str] = Counter()
        self._by_id: dict[str, Creation] = {}
        self._operations = 0
        self._file: IO[bytes] = file.open("wb")
        self._encoder = msgspec.json.Encoder()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def new_operation(self) -> int:
        self._operations += 1
        return self._operations

    @contextmanager
    def attempting(self, attempt: Attempt) -> Iterator[None]:
        """Around the request; the block sets the outcome."""
        self.in_flight[attempt.kind] += 1
        try:
            yield
        finally:
            self.in_flight[attempt.kind] -= 1
            attempt.answered_at = time.time()
            self.attempts.append(attempt)
            self._write(attempt)

    def know(self, fact: Fact) -> None:
        self.facts.append(fact)
        self._write(fact)

    def created(self, creation: Creation, work_order_id: str) -> None:
        creation.work_order_id = work_order_id
        self._by_id[work_order_id] = creation

    def ended(self, work_order_id: str) -> None:
        creation = self._by_id.get(work_order_id)
        if creation is not None:
            creation.ended = True

    @property
    def open(self) -> list[Creation]:
        """Acknowledged, and not known to have ended."""
        return [creation for creation in self._by_id.values() if not creation.ended]

    @property
    def owed(self) -> int:
        """Creations that no client has an answer to yet."""
        return len(self.creations) - len(self._by_id)

    def facts_of(self, what: Certain) -> list[Fact]:
        return [fact for fact in self.facts if fact.what is what]

    def flying(self) -> dict[str, int]:
        """Requests on their way at this instant, by kind."""
        return {kind: count for kind, count in self.in_flight.items() if count}

    def _write(self, entry: msgspec.Struct) -> None:
        self._file.write(self._encoder.encode(entry) + b"\n")
