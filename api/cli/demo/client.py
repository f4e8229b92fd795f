"""One signed-in account over public HTTP, patient with a system that is busy, restarting or out for a moment."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import msgspec

#: How long an outage may last before an account gives up; the system promises to be back long before.
PATIENCE_S: Final = 60.0
_RETRY_AFTER_AT_MOST_S: Final = 30.0
_BACK_OFF_S: Final = (0.2, 0.5, 1.0, 2.0)
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
#: In the body of a 409 while the first request with the same key is under way.
_IN_PROGRESS: Final = b"IDEMPOTENCY_IN_PROGRESS"


class Refused(Exception):
    """The API said no. `code` is the machine's word for why, such as OFFER_TAKEN."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{message} ({status} {code})")
        self.status = status
        self.code = code


class Unreachable(Exception):
    """Nothing has answered for longer than the account's patience."""


class Location(msgspec.Struct, frozen=True):
    """WGS 84 degrees."""

    lat: float
    lng: float


class OfferedWork(msgspec.Struct, frozen=True):
    kind: str
    reference: str
    address: str | None
    location: Location | None


class Offer(msgspec.Struct, frozen=True):
    id: str
    work_order_id: str
    work_order: OfferedWork
    driver_id: str
    status: str
    reason: str | None
    mode: str
    exclusive: bool
    sequence: int


class ExcludedCount(msgspec.Struct, frozen=True):
    reason: str
    count: int


class WorkOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo reads of a work order; `offers` are there in a detail only."""

    id: str
    kind: str
    reference: str
    status: str
    address: str | None
    location: Location | None
    required_skills: list[str]
    waiting_reasons: list[ExcludedCount] | None
    assigned_driver_id: str | None
    created_at: datetime
    assigned_at: datetime | None
    cancellation_reason: str | None
    offers: list[Offer] = []


class Page(msgspec.Struct, frozen=True, rename={"total_pages": "totalPages"}):
    """A page of work orders."""

    data: list[WorkOrder]
    total: int
    total_pages: int


class Driver(msgspec.Struct, frozen=True):
    id: str
    full_name: str
    status: str


class Explanation(msgspec.Struct, frozen=True):
    summary: str


class _User(msgspec.Struct, frozen=True):
    full_name: str


class _Tokens(msgspec.Struct, frozen=True):
    access_token: str
    user: _User


class _Error(msgspec.Struct, frozen=True):
    error: str
    code: str


def connect(url: str) -> httpx.AsyncClient:
    """The connections that all accounts share. A proxy of the environment is never asked for this very machine."""
    return httpx.AsyncClient(
        base_url=url,
        timeout=httpx.Timeout(15, connect=3),
        limits=httpx.Limits(max_connections=60, max_keepalive_connections=60),
        trust_env=urlsplit(url).hostname not in _LOOPBACK,
        headers={"User-Agent": "fairlead-demo"},
    )


class Account:
    """Signs in by itself, and again when the token has run out."""

    def __init__(self, http: httpx.AsyncClient, email: str, password: str) -> None:
        self.email = email
        self.full_name = email
        #: Seconds of outage until Unreachable.
        self.patience = PATIENCE_S
        self._http = http
        self._password = password
        self._token = ""

    async def sign_in(self) -> None:
        """Raises Refused for a wrong password or an unknown account, Unreachable."""
        response = await self._send("POST", "/api/v1/auth/login", {"email": self.email, "password": self._password}, {})
        tokens = msgspec.json.decode(_checked(response).content, type=_Tokens)
        self._token, self.full_name = tokens.access_token, tokens.user.full_name

    async def ask(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """The answer, when it is a good one. Raises Refused, Unreachable."""
        given = dict(headers or {})
        if method == "POST":
            # An answer that was lost on the way must not have the work created twice.
            given["Idempotency-Key"] = str(uuid4())
        response = await self._send(method, f"/api/v1{path}", body, given | self._authorization)
        if response.status_code == 401:
            await self.sign_in()
            response = await self._send(method, f"/api/v1{path}", body, given | self._authorization)
        return _checked(response)

    @property
    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"}

    async def _send(self, method: str, path: str, body: Any, headers: dict[str, str]) -> httpx.Response:
        """Once more after a lost connection, a 429 or a 503, or while an earlier try of the same request is still in
        progress, for as long as patience lasts."""
        content = None if body is None else msgspec.json.encode(body)
        if content is not None:
            headers = headers | {"Content-Type": "application/json"}
        out_since: float | None = None
        attempt = 0
        while True:
            try:
                response = await self._http.request(method, path, content=content, headers=headers)
            except httpx.TransportError as error:
                out_since = out_since or time.monotonic()
                wait = _BACK_OFF_S[min(attempt, len(_BACK_OFF_S) - 1)]
                if time.monotonic() + wait - out_since > self.patience:
                    raise Unreachable(
                        f"{self._http.base_url} does not answer: {str(error) or type(error).__name__}"
                    ) from None
            else:
                in_progress = response.status_code == 409 and _IN_PROGRESS in response.content
                if response.status_code not in (429, 503) and not in_progress:
                    return response
                if response.status_code != 429:
                    out_since = out_since or time.monotonic()
                wait = _retry_after(response)
                if out_since and time.monotonic() + wait - out_since > self.patience:
                    raise Unreachable(f"{self._http.base_url} stays out: {response.status_code} from {path}")
            attempt += 1
            # Jitter, so that twenty drivers do not come back in the same instant.
            await asyncio.sleep(wait * random.uniform(1.0, 1.3))  # noqa: S311 - no secret


def _retry_after(response: httpx.Response) -> float:
    """Seconds; one where the header is absent or a date, which ours never is."""
    given = response.headers.get("retry-after", "")
    return min(float(given), _RETRY_AFTER_AT_MOST_S) if given.isdigit() else 1.0


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    try:
        said = msgspec.json.decode(response.content, type=_Error)
    except msgspec.MsgspecError:
        said = _Error(response.text[:200] or response.reason_phrase, "UNKNOWN")
    raise Refused(response.status_code, said.code, said.error)
