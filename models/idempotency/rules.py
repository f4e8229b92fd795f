"""One request under one key: what tells it from others, which keys and answers are kept, and the refusals."""

from __future__ import annotations

import hashlib
import re
from typing import Final
from uuid import UUID

import msgspec

from models.kit.errors import Refusal

KEPT_HOURS: Final = 24
LONGEST_KEY: Final = 255
#: Printable ASCII.
KEY_PATTERN: Final = r"^[ -~]+$"
_KEY: Final = re.compile(rf"[ -~]{{1,{LONGEST_KEY}}}")

#: Refusals that are decided anew each time: they come of the token, the headers or the moment, and none of those is
#: part of the fingerprint.
_DECIDED_ANEW: Final = frozenset({401, 403, 408, 412, 413, 415, 425, 428, 429})


class IdempotencyKeyReused(Refusal):
    message = "This Idempotency-Key was sent with another request"


class IdempotencyInProgress(Refusal):
    message = "The first request with this Idempotency-Key is still in progress"


class KeyedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request with a key. `route` is the path's template, `fingerprint` tells what was asked for under it."""

    organization_id: UUID
    caller_id: UUID
    method: str
    route: str
    key: str
    fingerprint: bytes

    @property
    def lock(self) -> int:
        """The advisory lock of all requests with this key, as Postgres' bigint."""
        text = "\0".join((str(self.organization_id), str(self.caller_id), self.method, self.route, self.key))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], signed=True)


class KeptAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer as it left, but for the headers that every answer gets."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


def is_key(text: str) -> bool:
    return _KEY.fullmatch(text) is not None


def fingerprint(path: str, query: bytes, body: bytes) -> bytes:
    """SHA-256 over the three. Neither a path nor a query has a NUL in it."""
    return hashlib.sha256(b"\0".join((path.encode(), query, body))).digest()


def is_kept(status: int, *, decided: bool) -> bool:
    """Whether whoever asks again gets this answer again. An error that nobody has `decided` on, such as a broken
    constraint, may not come again."""
    return decided and status < 500 and status not in _DECIDED_ANEW
