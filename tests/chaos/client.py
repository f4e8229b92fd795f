"""How clients speak to the API: one attempt, or as often as it takes until the answer is certain."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import aiohttp
import msgspec

from models.identity.permissions import Caller
from models.identity.tokens import AccessTokens
from models.kit.settings import DEVELOPMENT_SECRET
from tests.chaos.ledger import Attempt, Ledger, Outcome

#: A client that has waited so long gives up, and does not know.
TIME_LIMIT_S = 5.0
#: Access tokens live for 15 minutes.
TOKEN_AGE_S = 600.0
#: Refusals that only mean: not yet. The first attempt with this key is still being carried out.
NOT_YET = frozenset({"IDEMPOTENCY_IN_PROGRESS"})

_tokens = AccessTokens(DEVELOPMENT_SECRET)


class Account:
    """A signed-in person; the token is renewed in time, as signing in again would."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self._issued_at = float("-inf")
        self._headers: dict[str, str] = {}

    @property
    def headers(self) -> dict[str, str]:
        if time.monotonic() - self._issued_at > TOKEN_AGE_S:
            self._headers = {"Authorization": f"Bearer {_tokens.issue(self.caller)}"}
            self._issued_at = time.monotonic()
        return self._headers

    @property
    def driver_id(self) -> str:
        return str(self.caller.driver_id)


class Answer(msgspec.Struct, frozen=True):
    """`since` is when the first attempt was sent, `at` when this answer came."""

    outcome: Outcome
    status: int
    code: str
    body: Any
    since: float
    at: float

    @property
    def ok(self) -> bool:
        return self.outcome is Outcome.ACKNOWLEDGED


class Client:
    """One person's connection to the API. `rng` spreads the retries."""

    def __init__(self, http: aiohttp.ClientSession, ledger: Ledger, account: Account, rng: random.Random) -> None:
        self.ledger = ledger
        self.account = account
        self.rng = rng
        self._http = http

    async def ask(
        self,
        kind: str,
        method: str,
        path: str,
        *,
        subject: str = "",
        body: Any = None,
        key: str | None = None,
        operation: int | None = None,
        since: float | None = None,
    ) -> Answer:
        """One attempt, whatever comes of it."""
        attempt = Attempt(
            operation=operation or self.ledger.new_operation(), actor=self.account.caller.name, kind=kind,
            subject=subject, key=key, sent_at=time.time(),
        )  # fmt: skip
        headers = self.account.headers | ({"Idempotency-Key": key} if key else {})
        content: Any = None
        if body is not None:
            headers["Content-Type"] = "application/json"
        with self.ledger.attempting(attempt):
            try:
                data = None if body is None else msgspec.json.encode(body)
                async with self._http.request(method, f"/api/v1{path}", data=data, headers=headers) as response:
                    raw = await response.read()
                    attempt.status = response.status
                    content = msgspec.json.decode(raw) if raw else None
            except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError) as error:
                # Without its whole answer, a request may or may not have been carried out.
                attempt.status, attempt.code = 0, type(error).__name__
            else:
                attempt.outcome = _outcome(attempt.status)
                if attempt.outcome is not Outcome.ACKNOWLEDGED and isinstance(content, dict):
                    attempt.code = str(content.get("code", ""))
        return Answer(
            attempt.outcome, attempt.status, attempt.code, content, since or attempt.sent_at, attempt.answered_at
        )

    async def insist(self, kind: str, method: str, path: str, *, subject: str = "", **options: Any) -> Answer:
        """Until the answer is certain, with the same key and body each time."""
        operation, since, wait_s = self.ledger.new_operation(), time.time(), 0.2
        while True:
            answer = await self.ask(kind, method, path, subject=subject, operation=operation, since=since, **options)
            if answer.outcome is not Outcome.UNKNOWN and answer.code not in NOT_YET:
                return answer
            await asyncio.sleep(wait_s * self.rng.uniform(0.5, 1.5))
            wait_s = min(wait_s * 1.6, 1.5)


def _outcome(status: int) -> Outcome:
    if status < 300:
        return Outcome.ACKNOWLEDGED
    return Outcome.REFUSED if status < 500 else Outcome.UNKNOWN


def session(base_url: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        base_url,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=TIME_LIMIT_S),
    )
